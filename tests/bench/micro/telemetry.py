"""``make bench-micro``: what a connection costs in metrics and in the access log. Nothing about time is asserted."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.bench.documents import CLIENT, SERVER
from ztun.mesh.model import TunnelProtocol, Workload
from ztun.telemetry.access_log import AccessLog, ConnectionReport
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.writer import Line

pytestmark = pytest.mark.unit

SERIES = 1000


class Paper:
    """In place of the writer's queue, so that the thread behind it is not measured."""

    def __init__(self) -> None:
        self.last = ""

    def put(self, line: Line | str) -> None:
        self.last = line if isinstance(line, str) else line.render()


def workload(name: str, ip: str) -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/default/{name}",
        name=name,
        namespace="default",
        addresses=(ip,),
        service_account=name,
        tunnel_protocol=TunnelProtocol.HBONE,
        labels=MappingProxyType({"app": name}),
        workload_name=name,
        canonical_name=name,
        cluster_id="Kubernetes",
    )


SOURCE, DESTINATION = workload("client", "10.0.1.10"), workload("server", "10.0.2.10")
LABELS = TrafficLabels("source", SOURCE, DESTINATION, None, CLIENT, SERVER, mutual_tls=True)


def test_count_a_connection(benchmark: BenchmarkFixture) -> None:
    """The series is found by its labels, then opened and closed."""
    metrics = Metrics()

    def count() -> None:
        series = metrics.traffic(LABELS)
        series.opened += 1
        series.sent += 64
        series.closed()

    benchmark(count)
    assert "istio_tcp_connections_opened_total" in metrics.render().decode()


def test_scrape_of_1000_series(benchmark: BenchmarkFixture) -> None:
    metrics = Metrics()
    for number in range(SERIES):
        source = workload(f"client-{number}", f"10.0.{number // 256}.{number % 256}")
        series = metrics.traffic(TrafficLabels("source", source, DESTINATION))
        series.opened += 1
    assert len(benchmark(metrics.render)) > SERIES


@pytest.mark.parametrize("mode", ["text", "json"])
def test_access_log_line(benchmark: BenchmarkFixture, mode: str) -> None:
    """From the report to the finished line."""
    paper = Paper()
    log = AccessLog(paper, mode=mode)  # type: ignore[arg-type]
    report = ConnectionReport(
        "10.0.1.10:51234",
        "10.0.2.10:15008",
        "outbound",
        "10.0.2.10:9000",
        "server.default.svc.cluster.local",
        SOURCE,
        DESTINATION,
        CLIENT,
        SERVER,
        64,
        64,
        0.0012,
    )
    benchmark(log.complete, report)
    assert "connection complete" in paper.last
    assert str(SERVER) in paper.last
