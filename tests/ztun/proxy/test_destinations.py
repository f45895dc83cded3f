"""What a process knows of its destinations: limits, turns and ejections, kept over reloads and bounded."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest

from ztun.errors import RouteError
from ztun.mesh.lookup import RouteKind
from ztun.mesh.model import Service, ServicePort, TunnelProtocol, Workload
from ztun.proxy import destinations as module
from ztun.proxy.destinations import Destinations, Lease, destination_of
from ztun.routing import (
    Action,
    Decision,
    Destination,
    DestinationStatus,
    Diagnostic,
    Matched,
    RouteEndpoint,
)
from ztun.telemetry.metrics import Metrics
from ztun.traffic.cluster import Asker
from ztun.traffic.policy import (
    Balancing,
    OutlierPolicy,
    PoolLimits,
    TlsMode,
    TrafficPolicy,
    UpstreamTls,
)

pytestmark = pytest.mark.unit

HOST = "echo.default.svc.cluster.local"
SERVICE = Service("echo", "default", HOST, ports={80: ServicePort(80, 9000)})
IN_TURN = TrafficPolicy(balancing=Balancing.ROUND_ROBIN)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rig:
    def __init__(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.destinations = Destinations(self.clock, random.Random(1), metrics=self.metrics)

    def take(self, destination: Destination, ip: str = "10.9.0.1") -> Lease:
        return self.destinations.take(destination, Asker(ip))

    def addresses(self, destination: Destination, count: int) -> list[str]:
        leases = [self.take(destination) for _ in range(count)]
        for lease in leases:
            lease.close()
        return [lease.route.address[0] for lease in leases]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def endpoint(number: int, *, tunnel: bool = True, network: str = "") -> RouteEndpoint:
    pod = Workload(
        uid=f"pod-{number}",
        name=f"pod-{number}",
        namespace="default",
        addresses=(f"10.0.0.{number}",),
        tunnel_protocol=TunnelProtocol.HBONE if tunnel else TunnelProtocol.NONE,
        network=network,
    )
    return RouteEndpoint(pod, f"10.0.0.{number}", 9000)


def destination(*endpoints: RouteEndpoint, policy: TrafficPolicy = IN_TURN, subset: str = "") -> Destination:
    found = endpoints or (endpoint(1), endpoint(2))
    return Destination(
        HOST, 80, Fraction(1), DestinationStatus.OK, subset, service=SERVICE, endpoints=found, policy=policy
    )


def limited(count: int) -> TrafficPolicy:
    return replace(IN_TURN, pool=PoolLimits(max_connections=count))


def ejecting(errors: int = 2) -> TrafficPolicy:
    return replace(
        IN_TURN,
        outlier=OutlierPolicy(consecutive_errors=errors, base_ejection_time=30, max_ejection_percent=50),
    )


def with_mode(mode: TlsMode) -> TrafficPolicy:
    return TrafficPolicy(tls=UpstreamTls(mode))


def test_turns_go_on_over_a_reload(rig: Rig) -> None:
    assert rig.addresses(destination(), 3) == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    reloaded = destination(endpoint(1), endpoint(2), endpoint(3))
    assert rig.addresses(reloaded, 3) == ["10.0.0.2", "10.0.0.1", "10.0.0.3"]


def test_more_connections_than_allowed_are_refused_until_one_ends(rig: Rig) -> None:
    to = destination(policy=limited(2))
    leases = [rig.take(to), rig.take(to)]
    with pytest.raises(RouteError, match="as many connections") as caught:
        rig.take(to)
    assert caught.value.code == "overload"
    assert b"ztun_destination_overflows_total 1" in rig.metrics.render()
    leases[0].opened()
    leases[0].close()
    leases[0].close()
    rig.take(to)
    with pytest.raises(RouteError):
        rig.take(to)


def test_limits_count_connections_that_were_opened_before_a_reload(rig: Rig) -> None:
    rig.take(destination(policy=limited(2)))
    again = destination(endpoint(3), policy=limited(1))
    with pytest.raises(RouteError, match="as many connections"):
        rig.take(again)


def test_subsets_and_ports_are_counted_apart(rig: Rig) -> None:
    rig.take(destination(policy=limited(1)))
    rig.take(destination(policy=limited(1), subset="v1"))
    rig.take(replace(destination(policy=limited(1)), port=81))


def test_an_endpoint_that_fails_is_ejected_and_comes_back(rig: Rig) -> None:
    to = destination(policy=ejecting())
    for _ in range(2):
        lease = rig.take(to)
        while lease.route.address[0] != "10.0.0.1":
            lease.close()
            lease = rig.take(to)
        lease.failed()
    assert set(rig.addresses(to, 6)) == {"10.0.0.2"}
    assert b"ztun_endpoints_ejected_total 1" in rig.metrics.render()
    rig.clock.now = 29.9
    assert set(rig.addresses(to, 6)) == {"10.0.0.2"}
    rig.clock.now = 30.0
    assert set(rig.addresses(to, 6)) == {"10.0.0.1", "10.0.0.2"}


def test_a_success_in_between_forgives(rig: Rig) -> None:
    to = destination(endpoint(1), policy=ejecting())
    rig.take(to).failed()
    lease = rig.take(to)
    lease.opened()
    lease.close()
    rig.take(to).failed()
    assert rig.addresses(to, 1) == ["10.0.0.1"]


def test_ejections_outlive_a_reload(rig: Rig) -> None:
    rig.take(destination(policy=ejecting(1))).failed()
    again = destination(endpoint(1), endpoint(2), endpoint(3), policy=ejecting(1))
    assert set(rig.addresses(again, 6)) == {"10.0.0.2", "10.0.0.3"}


def test_the_second_attempt_takes_the_place_of_the_first(rig: Rig) -> None:
    to = destination(policy=replace(ejecting(1), pool=PoolLimits(max_connections=1)))
    lease = rig.take(to)
    first = lease.route.address
    second = lease.another(frozenset({"pod-1" if first[0] == "10.0.0.1" else "pod-2"}))
    assert second.address != first
    assert lease.route is second
    lease.opened()
    with pytest.raises(RouteError, match="as many connections"):
        rig.take(to)
    lease.close()
    assert set(rig.addresses(to, 1)) == {second.address[0]}  # the first one is ejected


def test_without_another_endpoint_the_first_keeps_its_place(rig: Rig) -> None:
    to = destination(endpoint(1), policy=limited(1))
    lease = rig.take(to)
    with pytest.raises(RouteError) as caught:
        lease.another(frozenset({"pod-1"}))
    assert caught.value.code == "no_healthy_upstream"
    with pytest.raises(RouteError, match="as many connections"):
        rig.take(to)
    lease.failed()
    rig.take(to)


def test_a_client_keeps_its_endpoint(rig: Rig) -> None:
    hashed = TrafficPolicy(balancing=Balancing.RING_HASH, hash_source_ip=True)
    to = destination(*(endpoint(number) for number in range(1, 6)), policy=hashed)
    chosen = {}
    for client in range(1, 30):
        ip = f"10.9.0.{client}"
        seen = {rig.take(to, ip).route.address for _ in range(3)}
        assert len(seen) == 1
        chosen[ip] = seen
    assert len({address for seen in chosen.values() for address in seen}) > 1


def test_endpoints_of_other_networks_are_left_out(rig: Rig) -> None:
    to = destination(endpoint(1, network="elsewhere"), endpoint(2))
    assert set(rig.addresses(to, 3)) == {"10.0.0.2"}
    with pytest.raises(RouteError) as caught:
        rig.take(destination(endpoint(3, network="elsewhere")))
    assert caught.value.code == "no_healthy_upstream"


@pytest.mark.parametrize("mode", [TlsMode.AUTO, TlsMode.ISTIO_MUTUAL])
def test_a_pod_of_the_mesh_is_reached_by_a_tunnel(rig: Rig, mode: TlsMode) -> None:
    route = rig.take(destination(endpoint(1), policy=with_mode(mode))).route
    assert route.kind is RouteKind.HBONE
    assert route.authority == "10.0.0.1:9000"


def test_without_encryption_wanted_there_is_none(rig: Rig) -> None:
    route = rig.take(destination(endpoint(1), policy=with_mode(TlsMode.DISABLE))).route
    assert (route.kind, route.address) == (RouteKind.TCP, ("10.0.0.1", 9000))


def test_a_pod_outside_the_mesh_is_reached_plainly_unless_encryption_is_demanded(rig: Rig) -> None:
    outside = endpoint(1, tunnel=False)
    assert rig.take(destination(outside, policy=with_mode(TlsMode.AUTO))).route.kind is RouteKind.TCP
    with pytest.raises(RouteError) as caught:
        rig.take(destination(outside, policy=with_mode(TlsMode.ISTIO_MUTUAL)))
    assert caught.value.code == "tls_no_tunnel"


@pytest.mark.parametrize("mode", [TlsMode.SIMPLE, TlsMode.MUTUAL])
def test_encryption_that_cannot_be_had_is_no_reason_to_send_plainly(rig: Rig, mode: TlsMode) -> None:
    with pytest.raises(RouteError) as caught:
        rig.take(destination(policy=with_mode(mode)))
    assert caught.value.code == "tls_origination"


def test_balancing_can_keep_the_dialled_address(rig: Rig) -> None:
    to = destination(policy=TrafficPolicy(balancing=Balancing.PASSTHROUGH))
    asker = Asker("10.9.0.1")
    vip = rig.destinations.take(to, asker, dialled=("10.96.0.1", 80))
    assert (vip.route.kind, vip.route.address) == (RouteKind.PASSTHROUGH, ("10.96.0.1", 80))
    pod = rig.destinations.take(to, asker, dialled=("10.0.0.2", 80))
    assert (pod.route.kind, pod.route.authority) == (RouteKind.HBONE, "10.0.0.2:80")
    with pytest.raises(RouteError):
        pod.another(frozenset({"pod-2"}))


def test_a_pod_of_a_headless_service_is_counted_alone(rig: Rig) -> None:
    headless = replace(SERVICE, headless=True)
    first, second = (
        replace(destination(endpoint(number), policy=limited(1)), service=headless) for number in (1, 2)
    )
    rig.take(first)
    rig.take(second)
    with pytest.raises(RouteError, match="as many connections"):
        rig.take(first)


def test_idle_destinations_are_forgotten_when_there_are_too_many(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IDLE_DESTINATIONS", 3)
    busy = Destinations(rig.clock, random.Random(1))
    held = busy.take(destination(policy=limited(1), subset="busy"), Asker())
    for number in range(10):
        busy.take(destination(subset=f"s{number}"), Asker()).close()
    assert len(busy) == 3
    with pytest.raises(RouteError, match="as many connections"):
        busy.take(destination(policy=limited(1), subset="busy"), Asker())
    held.close()


def test_a_refusal_names_the_rule_the_destination_and_the_findings() -> None:
    gone = replace(destination(), status=DestinationStatus.NO_SUBSET, subset="v9", endpoints=())
    finding = Diagnostic("DST-NOSUBSET", "error", "VirtualService default/echo", (), "")
    rule = Matched("default/echo", "tcp", 0, None)
    decision = Decision(Action.ROUTE, SERVICE, rule, (gone,), gone, (finding, finding))
    with pytest.raises(RouteError, match=r"default/echo tcp\[0\] sends it to .* subset v9") as caught:
        destination_of(decision)
    assert caught.value.code == "route_no_subset"
    assert caught.value.hint.endswith("findings: DST-NOSUBSET")
    with pytest.raises(RouteError) as caught:
        destination_of(Decision(Action.NO_LISTENER))
    assert caught.value.code == "route_no_listener"
