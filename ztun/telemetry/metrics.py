"""Every metric of a proxy. Names and labels of Istio's metrics are Istio's; names that begin with ``ztun_``
are ours.

Help texts of everything that dashboards should not rely on yet end in "(unstable)", as ztunnel's do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from certs.spiffe import SpiffeId
from ztun import __version__
from ztun.errors import ZtunError
from ztun.telemetry.families import Counter, Family, Gauge, Histogram, Labels, ReadCounter, ReadGauge
from ztun.telemetry.labels import SOURCE_NAMES, TrafficLabels
from ztun.telemetry.traffic import TrafficSeries, TrafficTable

LAG_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
HANDSHAKE_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


FamilyT = TypeVar("FamilyT", bound=Family)


class Metrics:
    """The counters of one proxy. Methods are for the event-loop thread, ``render`` is for the scrape's
    thread.

    ``registry`` may hold collectors of the caller's own; ``component`` and ``version`` label ``istio_build``.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        component: str = "ztunnel",
        version: str = __version__,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.table = TrafficTable(clock)
        self._families: list[Family] = []
        self.sockets_open = self.add(
            Gauge("istio_tcp_sockets_open", "Accepted sockets, tunnels included (unstable)", ("reporter",))
        )
        self.crl_rejections = self.add(
            Counter(
                "istio_crl_policy_rejections",
                "Handshakes and connections refused because of a revocation list (unstable)",
                ("reporter",),
            )
        )
        self.on_demand_dns = self.add(
            Counter(
                "istio_on_demand_dns",
                "Uses of the address of a workload that is known by its DNS name only (unstable)",
                (*SOURCE_NAMES, "hostname"),
            )
        )
        self.tunnels_open = self.add(
            Gauge(
                "ztun_tunnels_open",
                "HBONE tunnels, by our role in them: client or server (unstable)",
                ("role",),
            )
        )
        self.held_bytes = self.add(
            Gauge("ztun_held_bytes", "Payload that waits for readers that have stopped (unstable)")
        )
        self.pool_hits = self.add(Counter("ztun_pool_hits", "Streams opened on a pooled tunnel (unstable)"))
        self.pool_dials = self.add(Counter("ztun_pool_dials", "Tunnels dialled by the pool (unstable)"))
        self.guard_trips = self.add(
            Counter("ztun_guard_trips", "Tunnels cut by a flood guard, by its name (unstable)", ("guard",))
        )
        self.handshake_failures = self.add(
            Counter(
                "ztun_handshake_failures",
                "Failed TLS handshakes by role and code (unstable)",
                ("role", "code"),
            )
        )
        self.handshake_seconds = self.add(
            Histogram(
                "ztun_handshake_seconds",
                "Time of successful TLS handshakes (unstable)",
                HANDSHAKE_BUCKETS_SECONDS,
                ("role",),
            )
        )
        self.connection_failures = self.add(
            Counter(
                "ztun_connection_failures",
                "Connections that failed, early refusals included, by stage and code (unstable)",
                ("stage", "code"),
            )
        )
        self.tasks = self.add(Gauge("ztun_event_loop_tasks", "Tasks of the event loop (unstable)"))
        self.loop_lag_seconds = self.add(
            Histogram(
                "ztun_event_loop_lag_seconds",
                "How late the event loop ran a timer (unstable)",
                LAG_BUCKETS_SECONDS,
            )
        )
        self.series_evicted = self.add(
            Counter("ztun_metric_series_evicted", "Label sets forgotten because they were idle (unstable)")
        )
        self.add(
            ReadCounter(
                "ztun_metric_series_overflow",
                "Connections counted under unknown labels because there are too many label sets (unstable)",
                lambda: self.table.overflowed,
            )
        )
        self.registry.register(_Build(component, version))
        ProcessCollector(registry=self.registry)
        self.registry.register(_Families(self._families))

    def add(self, family: FamilyT) -> FamilyT:
        """Include a family of the caller's own, e.g. a counter of the DNS proxy."""
        self._families.append(family)
        return family

    def traffic(self, labels: TrafficLabels) -> TrafficSeries:
        """The counters for connections with these labels; keep the result for the life of one connection."""
        return self.table.series(labels)

    def failed(self, error: ZtunError) -> None:
        """Count a connection that ended with an error or was refused."""
        self.connection_failures.inc(error.stage, error.code)

    def tick(self, lag_seconds: float) -> None:
        """Call about once a second: records how late the call came and forgets label sets that were idle."""
        self.loop_lag_seconds.observe(max(0.0, lag_seconds))
        if evicted := self.table.sweep():
            self.series_evicted.inc(by=evicted)

    def watch_certificates(
        self, read: Callable[[], Iterable[tuple[SpiffeId, datetime]]], now: Callable[[], datetime]
    ) -> None:
        """Export the seconds until each certificate expires; negative when it has. ``read`` gives a copy."""
        self.add(
            ReadGauge(
                "ztun_certificate_expiry_seconds",
                "Seconds until the certificate of a local workload expires (unstable)",
                ("identity",),
                lambda: [((str(who),), (end - now()).total_seconds()) for who, end in read()],
            )
        )

    def watch_half_closed(self, read: Callable[[], tuple[int, float]]) -> None:
        """Export how many connections are half closed and for how many seconds the oldest of them is."""
        self.add(
            ReadGauge(
                "ztun_half_closed_connections",
                "Connections of which one direction has ended (unstable)",
                (),
                lambda: [((), read()[0])],
            )
        )
        self.add(
            ReadGauge(
                "ztun_half_closed_oldest_seconds",
                "Age of the oldest half-closed connection (unstable)",
                (),
                lambda: [((), read()[1])],
            )
        )

    def watch_log(self, read: Callable[[], int]) -> None:
        """Export how many log lines were dropped."""
        self.add(ReadCounter("ztun_log_lines_dropped", "Log lines lost to a full queue (unstable)", read))

    def render(self) -> bytes:
        """Everything in the OpenMetrics text format, ending in ``# EOF``."""
        pieces = []
        for piece in self.table.exposition():
            pieces.append(piece.encode("utf-8", "backslashreplace"))
            time.sleep(0)  # gives up the interpreter's lock; asked for it, this thread would keep it for 5 ms
        rest: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return b"".join((*pieces, rest))


class _Families(Collector):
    """What the registry asks; families without samples are left out, as ztunnel does."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in list(self._families):
            metric = family.collect()
            if metric.samples:
                yield metric


class _Build(Collector):
    """``istio_build``, which dashboards read the versions of a fleet from."""

    def __init__(self, component: str, version: str) -> None:
        self._labels: Labels = (component, version)

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("istio_build", "Istio component build info", labels=("component", "tag"))
        family.add_metric(self._labels, 1)
        yield family
