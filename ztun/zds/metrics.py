"""The metrics of in-pod mode, with ztunnel's names."""

from __future__ import annotations

from ztun.telemetry.families import Counter, Gauge
from ztun.telemetry.metrics import Metrics


class PodMetrics:
    """The families of one process; made once."""

    def __init__(self, metrics: Metrics) -> None:
        self.active = metrics.add(
            Gauge("workload_manager_active_proxy_count", "Pods of the node agent that are served")
        )
        self.pending = metrics.add(
            Gauge("workload_manager_pending_proxy_count", "Pods of the node agent that cannot be served yet")
        )
        self.started = metrics.add(Counter("workload_manager_proxies_started", "Pods that were taken in"))
        self.stopped = metrics.add(Counter("workload_manager_proxies_stopped", "Pods that were let go"))
