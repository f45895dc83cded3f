from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from certs.spiffe import SpiffeId
from ztun.errors import ConnectError
from ztun.mesh.baggage import Baggage
from ztun.mesh.model import Locality, Service, Workload
from ztun.telemetry.families import MAX_LABEL_SETS, Counter
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.traffic import CLAIMED_SHARE, IDLE_SECONDS, PIECE_SERIES, TrafficTable

pytestmark = pytest.mark.unit

CLIENT = Workload(
    uid="Kubernetes//Pod/default/client-1",
    name="client-1",
    namespace="default",
    service_account="client",
    workload_name="client",
    canonical_name="client-app",
    canonical_revision="v1",
    locality=Locality("eu", "eu-a"),
)
ECHO = Workload(
    uid="Kubernetes//Pod/demo/echo-1",
    name="echo-1",
    namespace="demo",
    service_account="echo",
    workload_name="echo",
    canonical_name="echo",
    canonical_revision="v2",
    cluster_id="west",
)
SERVICE = Service(name="echo", namespace="demo", hostname="echo.demo.svc.cluster.local")
LABELS = TrafficLabels(
    reporter="source",
    source=CLIENT,
    destination=ECHO,
    service=SERVICE,
    source_principal=CLIENT.identity,
    destination_principal=ECHO.identity,
    mutual_tls=True,
)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape, read with the strict OpenMetrics parser."""
    text = metrics.render().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum over the samples that carry these labels."""
    wanted = set(labels.items())
    return sum(number for (found, has), number in samples(metrics).items() if found == name and wanted <= has)


def test_the_line_has_istio_s_labels_in_ztunnel_s_order() -> None:
    metrics = Metrics()
    metrics.traffic(LABELS).opened += 1
    line = next(
        row
        for row in metrics.render().decode().split("\n")
        if row.startswith("istio_tcp_connections_opened_total")
    )
    assert line == (
        'istio_tcp_connections_opened_total{reporter="source",source_workload="client",'
        'source_canonical_service="client-app",source_canonical_revision="v1",'
        'source_workload_namespace="default",source_principal="spiffe://cluster.local/ns/default/sa/client",'
        'source_app="client-app",source_version="v1",source_cluster="Kubernetes",'
        'destination_service="echo.demo.svc.cluster.local",'
        'destination_service_namespace="demo",destination_service_name="echo",destination_workload="echo",'
        'destination_canonical_service="echo",destination_canonical_revision="v2",'
        'destination_workload_namespace="demo",'
        'destination_principal="spiffe://cluster.local/ns/demo/sa/echo",'
        'destination_app="echo",destination_version="v2",destination_cluster="west",request_protocol="tcp",'
        'response_flags="-",connection_security_policy="mutual_tls",source_region="eu",source_zone="eu-a",'
        'destination_region="unknown",destination_zone="unknown"} 1'
    )


def test_without_workloads_everything_is_unknown_and_there_is_no_locality() -> None:
    metrics = Metrics()
    metrics.traffic(TrafficLabels(reporter="destination")).opened += 1
    ((_, labels),) = [key for key in samples(metrics) if key[0] == "istio_tcp_connections_opened_total"]
    found = dict(labels)
    assert found.pop("reporter") == "destination"
    assert found.pop("request_protocol") == "tcp"
    assert found.pop("response_flags") == "-"
    assert set(found.values()) == {"unknown"}
    assert "source_region" not in found
    assert len(found) == 20


def test_an_exchange_counts_bytes_and_its_end() -> None:
    metrics = Metrics()
    series = metrics.traffic(LABELS)
    series.opened += 1
    series.received += 11
    series.sent += 22
    assert value(metrics, "istio_tcp_connections_closed_total") == 0
    series.closed("-")
    assert value(metrics, "istio_tcp_received_bytes_total", reporter="source") == 11
    assert value(metrics, "istio_tcp_sent_bytes_total", reporter="source") == 22
    assert value(metrics, "istio_tcp_connections_closed_total", response_flags="-") == 1
    assert value(metrics, "istio_tcp_connections_failed_total") == 0


def test_a_flag_counts_as_closed_and_as_failed() -> None:
    metrics = Metrics()
    series = metrics.traffic(LABELS)
    series.opened += 2
    series.closed("DENY")
    series.closed("-")
    assert value(metrics, "istio_tcp_connections_opened_total", response_flags="-") == 2
    assert value(metrics, "istio_tcp_connections_closed_total", response_flags="DENY") == 1
    assert value(metrics, "istio_tcp_connections_closed_total", response_flags="-") == 1
    assert value(metrics, "istio_tcp_connections_failed_total", response_flags="DENY") == 1
    assert value(metrics, "istio_tcp_connections_failed_total") == 1


def test_pods_of_one_deployment_share_a_label_set() -> None:
    table = TrafficTable(Clock())
    first = table.series(LABELS)
    second = table.series(
        LABELS._replace(source=replace(CLIENT, uid="other", name="client-2", addresses=("10.0.0.9",)))
    )
    assert first is second
    assert len(table) == 1


def test_idle_label_sets_are_forgotten_and_live_ones_kept() -> None:
    clock = Clock()
    table = TrafficTable(clock)
    ended, live = table.series(LABELS), table.series(LABELS._replace(reporter="destination"))
    ended.opened += 1
    live.opened += 1
    ended.closed()
    clock.now += IDLE_SECONDS
    assert table.sweep() == 1
    assert table.series(LABELS._replace(reporter="destination")) is live
    assert table.series(LABELS) is not ended
    clock.now += 1
    live.closed()
    clock.now += IDLE_SECONDS - 1
    assert table.sweep() == 1  # the one that was made anew and not used
    clock.now += IDLE_SECONDS
    assert table.sweep() == 1
    assert len(table) == 0


def test_label_sets_are_capped_and_the_rest_is_counted_under_unknown() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.table = TrafficTable(clock, max_series=2)
    for number in range(5):
        source = replace(CLIENT, workload_name=f"client-{number}")
        metrics.traffic(LABELS._replace(source=source)).opened += 1
    assert len(metrics.table) == 3
    assert value(metrics, "istio_tcp_connections_opened_total") == 5
    assert (
        value(metrics, "istio_tcp_connections_opened_total", source_workload="unknown", reporter="source")
        == 3
    )
    assert value(metrics, "ztun_metric_series_overflow_total") == 3


def test_what_peers_say_of_themselves_takes_no_room_from_what_the_mesh_knows() -> None:
    """One that says something else each time would have every pod counted as unknown."""
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.table = TrafficTable(clock, max_series=3 * CLAIMED_SHARE)
    for number in range(100):
        words = Baggage(namespace="far", canonical_name=f"client-{number}")
        metrics.traffic(LABELS._replace(source=words)).opened += 1
    assert len(metrics.table) == 4
    name = "istio_tcp_connections_opened_total"
    assert value(metrics, name, source_workload_namespace="far") == 3
    assert value(metrics, name, source_app="client-0", source_principal=str(CLIENT.identity)) == 1
    assert value(metrics, name, source_app="unknown", destination_workload="echo") == 97
    assert value(metrics, "ztun_metric_series_overflow_total") == 97
    metrics.traffic(LABELS).opened += 1
    assert value(metrics, name, source_workload="client") == 1
    for series in list(metrics.table._series.values()):
        for _ in range(series.live):
            series.closed()
    clock.now += IDLE_SECONDS
    words = Baggage(cluster_id="far", locality=Locality("eu", "eu-b"))
    metrics.traffic(LABELS._replace(source=words)).opened += 1
    assert value(metrics, name, source_cluster="far", source_region="eu", source_zone="eu-b") == 1


def test_a_family_in_many_pieces_is_one_family() -> None:
    metrics = Metrics()
    for number in range(PIECE_SERIES * 2 + 1):
        series = metrics.traffic(LABELS._replace(source=replace(CLIENT, workload_name=f"client-{number}")))
        series.opened += 1
        if number > PIECE_SERIES:
            series.closed("DENY")
    text = metrics.render().decode()
    for name in ("opened", "closed", "failed"):
        assert text.count(f"# TYPE istio_tcp_connections_{name} counter\n") == 1
    assert value(metrics, "istio_tcp_connections_opened_total") == PIECE_SERIES * 2 + 1
    assert value(metrics, "istio_tcp_connections_failed_total") == PIECE_SERIES


def test_scrapes_while_label_sets_come_and_go() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    stop = threading.Event()
    found: list[float] = []

    def scrape() -> None:
        while not stop.is_set() or not found:
            found.append(value(metrics, "istio_tcp_connections_opened_total"))

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        for number in range(3000):
            series = metrics.traffic(
                LABELS._replace(source=replace(CLIENT, workload_name=f"w-{number % 1500}"))
            )
            series.opened += 1
            series.closed(f"F{number % 3}")
            clock.now += 1.0
            metrics.tick(0.0)
    finally:
        stop.set()
        scraper.join()
    assert found


@given(name=st.text(max_size=40), host=st.text(max_size=40))
def test_any_name_survives_the_exposition(name: str, host: str) -> None:
    metrics = Metrics()
    labels = LABELS._replace(
        source=replace(CLIENT, workload_name=name), service=replace(SERVICE, hostname=host)
    )
    metrics.traffic(labels).opened += 1
    lines = metrics.render().decode().split("\n")
    (line,) = [line for line in lines if line.startswith("istio_tcp_connections_opened_total")]
    (family,) = text_string_to_metric_families(
        f"# TYPE istio_tcp_connections_opened counter\n{line}\n# EOF\n"
    )
    (sample,) = family.samples
    assert sample.value == 1
    assert sample.labels["source_workload"] == (name or "unknown")
    assert sample.labels["destination_service"] == (host or "unknown")


def test_a_scrape_at_start_has_the_build_and_the_process_only() -> None:
    names = {name for name, _ in samples(Metrics(version="1.2.3"))}
    assert names == {"istio_build"} | {name for name in names if name.startswith("process_")}
    assert {"process_open_fds", "process_max_fds"} <= names
    assert value(Metrics(version="1.2.3"), "istio_build", component="ztunnel", tag="1.2.3") == 1
    assert Metrics().render().endswith(b"# EOF\n")


def test_everything_beyond_the_stable_names_says_unstable() -> None:
    metrics = Metrics()
    series = metrics.traffic(LABELS)
    series.opened += 1
    series.closed("CONNECT")
    metrics.sockets_open.add("source")
    metrics.guard_trips.inc("rapid_reset")
    metrics.on_demand_dns.inc(*["x"] * 9)
    metrics.pool_hits.inc()
    metrics.tick(0.002)
    metrics.watch_half_closed(lambda: (2, 17.5))
    metrics.watch_log(lambda: 3)
    stable = {
        "istio_build",
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
    }
    for family in text_string_to_metric_families(metrics.render().decode()):
        if not family.name.startswith("process_"):
            assert ("(unstable)" in family.documentation) == (family.name not in stable), family.name


def test_our_own_metrics() -> None:
    metrics = Metrics()
    metrics.sockets_open.add("destination", by=2)
    metrics.sockets_open.add("destination", by=-1)
    metrics.tunnels_open.set(4, "client")
    metrics.guard_trips.inc("ping_flood")
    metrics.handshake_failures.inc("server", "peer_expired")
    metrics.failed(ConnectError("connect_refused", "connection refused"))
    metrics.tick(0.003)
    metrics.tick(7.0)
    metrics.watch_half_closed(lambda: (2, 17.5))
    metrics.watch_log(lambda: 3)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    identity = SpiffeId("cluster.local", "default", "client")
    metrics.watch_certificates(lambda: [(identity, now + timedelta(hours=1))], lambda: now)
    assert value(metrics, "istio_tcp_sockets_open", reporter="destination") == 1
    assert value(metrics, "ztun_tunnels_open", role="client") == 4
    assert value(metrics, "ztun_guard_trips_total", guard="ping_flood") == 1
    assert value(metrics, "ztun_handshake_failures_total", role="server", code="peer_expired") == 1
    assert value(metrics, "ztun_connection_failures_total", stage="connect", code="connect_refused") == 1
    assert value(metrics, "ztun_event_loop_lag_seconds_count") == 2
    assert value(metrics, "ztun_event_loop_lag_seconds_bucket", le="0.005") == 1
    assert value(metrics, "ztun_event_loop_lag_seconds_bucket", le="0.0025") == 0
    assert value(metrics, "ztun_event_loop_lag_seconds_sum") == pytest.approx(7.003)
    assert value(metrics, "ztun_half_closed_connections") == 2
    assert value(metrics, "ztun_half_closed_oldest_seconds") == 17.5
    assert value(metrics, "ztun_log_lines_dropped_total") == 3
    assert value(metrics, "ztun_certificate_expiry_seconds", identity=str(identity)) == 3600


def test_a_bucket_holds_values_up_to_its_bound() -> None:
    metrics = Metrics()
    metrics.tick(0.005)
    assert value(metrics, "ztun_event_loop_lag_seconds_bucket", le="0.005") == 1


def test_label_sets_of_a_family_are_capped() -> None:
    counter = Counter("ztun_test", "Test", ("code",))
    for number in range(MAX_LABEL_SETS + 5):
        counter.inc(f"code_{number}")
    counter.inc("code_1")
    assert counter.value("code_1") == 2
    assert counter.value("other") == 5
