"""The metrics of the DNS proxy, with Istio's names."""

from __future__ import annotations

from ztun.mesh.model import Workload
from ztun.telemetry.families import Counter, Histogram, Labels
from ztun.telemetry.labels import UNKNOWN
from ztun.telemetry.metrics import Metrics

UPSTREAM_BUCKETS_SECONDS = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
_LABELS = ("request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision")


class DnsMetrics:
    """The families of one process; made once."""

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.add(Counter("istio_dns_requests", "DNS requests (unstable)", _LABELS))
        self.upstream_requests = metrics.add(
            Counter("istio_dns_upstream_requests", "DNS requests that were forwarded (unstable)", _LABELS)
        )
        self.upstream_failures = metrics.add(
            Counter(
                "istio_dns_upstream_failures",
                "Forwarded DNS requests that got no answer (unstable)",
                _LABELS,
            )
        )
        self.upstream_seconds = metrics.add(
            Histogram(
                "istio_dns_upstream_request_duration_seconds",
                "Time until a forwarded DNS request was answered or given up (unstable)",
                UPSTREAM_BUCKETS_SECONDS,
                _LABELS,
            )
        )
        self.overloads = metrics.add(
            Counter(
                "ztun_dns_overloads",
                "DNS requests and connections refused because too many were under way, by limit (unstable)",
                ("limit",),
            )
        )


def dns_labels(query_type: str, *, udp: bool, client: Workload | None) -> Labels:
    """The values of Istio's labels for one request."""
    return (
        query_type.lower(),
        "udp" if udp else "tcp",
        (client.canonical_name if client is not None else "") or UNKNOWN,
        (client.canonical_revision if client is not None else "") or UNKNOWN,
    )
