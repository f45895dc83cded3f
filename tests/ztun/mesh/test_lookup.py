"""Where outbound connections go: the decision tree, case by case."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import SpiffeId
from ztun.errors import RouteError
from ztun.mesh.lookup import OutboundRoute, RouteKind, decide_outbound, select_address
from ztun.mesh.model import (
    BalanceMode,
    GatewayAddress,
    Health,
    IpFamilies,
    LoadBalancing,
    NetworkAddress,
    Scope,
    Service,
    ServicePort,
    TunnelProtocol,
    Vip,
    WeightedWaypoint,
    Workload,
)
from ztun.mesh.snapshot import build_snapshot

pytestmark = pytest.mark.unit

SOURCE = Workload(
    "Kubernetes//Pod/ns/client", "client", "ns", ("127.0.0.9",), tunnel_protocol=TunnelProtocol.HBONE
)
ECHO = ("ns", "example.com")
WAYPOINT_SERVICE = Service(
    "waypoint", "ns", "waypoint.example", (Vip("", "10.10.0.9"),), {15008: ServicePort(15008, 15008)}
)
BY_HOSTNAME = GatewayAddress(("ns", "waypoint.example"))
BY_ADDRESS = GatewayAddress(NetworkAddress("", "127.0.0.10"))


def pod(name: str, *addresses: str, hbone: bool = True, **values: Any) -> Workload:
    protocol = TunnelProtocol.HBONE if hbone else TunnelProtocol.NONE
    account = values.pop("service_account", name)
    return Workload(
        f"Kubernetes//Pod/ns/{name}", name, "ns", addresses, account, tunnel_protocol=protocol, **values
    )


def endpoint(name: str, *addresses: str, ports: dict[int, int] | None = None, **values: Any) -> Workload:
    return pod(name, *addresses, services={ECHO: {80: 8080} if ports is None else ports}, **values)


def echo(**values: Any) -> Service:
    values.setdefault("ports", {80: ServicePort(80, 8080)})
    return Service("example", "ns", "example.com", (Vip("", "10.10.0.1"), Vip("", "2001:db8::a")), **values)


WAYPOINT = pod("waypoint", "127.0.0.10", services={WAYPOINT_SERVICE.key: {15008: 15008}})

CANARY_SERVICE = dataclasses.replace(
    WAYPOINT_SERVICE, name="canary", hostname="canary.example", vips=(Vip("", "10.10.0.8"),)
)
CANARY = pod("canary", "127.0.0.11", services={CANARY_SERVICE.key: {15008: 15008}})


def shared(primary: int, canary: int) -> Service:
    """The service behind a waypoint and its canary."""
    shares = (
        WeightedWaypoint(BY_HOSTNAME, primary),
        WeightedWaypoint(GatewayAddress(CANARY_SERVICE.key), canary),
    )
    return echo(waypoint=BY_HOSTNAME, weighted_waypoints=shares)


def decide(
    host: str, port: int, *items: Workload | Service, source: Workload = SOURCE, **options: Any
) -> OutboundRoute:
    state = build_snapshot(
        workloads=[source, *(item for item in items if isinstance(item, Workload))],
        services=[item for item in items if isinstance(item, Service)],
        policies=[],
    )
    return decide_outbound(state, source, host, port, rng=random.Random(3), **options)


def hop(route: OutboundRoute) -> tuple[RouteKind, str | None, tuple[str, int]]:
    return route.kind, route.authority, route.address


def code_of(*arguments: Any, **options: Any) -> str:
    with pytest.raises(RouteError) as caught:
        decide(*arguments, **options)
    return caught.value.code


class TestAddresses:
    def test_an_unknown_destination_passes_through(self) -> None:
        assert hop(decide("1.2.3.4", 80)) == (RouteKind.PASSTHROUGH, None, ("1.2.3.4", 80))

    def test_mapped_ipv4_is_ipv4(self) -> None:
        assert decide("::ffff:1.2.3.4", 80).address == ("1.2.3.4", 80)

    @pytest.mark.parametrize("node", ["here", "elsewhere"])
    def test_a_workload_without_tunnel_gets_plain_tcp(self, node: str) -> None:
        found = decide("127.0.0.2", 80, pod("w", "127.0.0.2", hbone=False, node=node))
        assert hop(found) == (RouteKind.TCP, None, ("127.0.0.2", 80))

    @pytest.mark.parametrize("node", ["here", "elsewhere"])
    def test_a_workload_with_a_tunnel_gets_one(self, node: str) -> None:
        target = pod("w", "127.0.0.2", node=node)
        found = decide("127.0.0.2", 80, target)
        assert hop(found) == (RouteKind.HBONE, "127.0.0.2:80", ("127.0.0.2", 15008))
        assert found.expected == (target.identity,)
        assert found.destination == target

    def test_a_sidecar_takes_its_own_tunnels(self) -> None:
        found = decide("127.0.0.2", 80, pod("w", "127.0.0.2", native_tunnel=True, sidecar=True))
        assert hop(found) == (RouteKind.HBONE, "127.0.0.2:80", ("127.0.0.2", 15008))

    def test_a_workload_of_both_families_keeps_the_one_asked_for(self) -> None:
        both = pod("w", "127.0.0.2", "2001:db8::2")
        assert decide("2001:db8::2", 80, both).authority == "[2001:db8::2]:80"
        assert decide("127.0.0.2", 80, both).authority == "127.0.0.2:80"

    def test_an_address_of_the_host_network_passes_through(self) -> None:
        found = decide("192.168.0.1", 80, pod("h", "192.168.0.1", host_network=True))
        assert hop(found) == (RouteKind.PASSTHROUGH, None, ("192.168.0.1", 80))
        assert found.destination is None

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.8.8.8"])
    @pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
    def test_a_port_of_the_proxy_itself_is_refused(self, host: str, port: int) -> None:
        assert code_of(host, port) == "self_call"

    def test_a_workload_that_was_tried_is_not_tried_again(self) -> None:
        target = pod("w", "127.0.0.2")
        assert code_of("127.0.0.2", 80, target, excluded=frozenset({target.uid})) == "no_healthy_upstream"


class TestServices:
    def test_the_endpoint_of_a_service(self) -> None:
        target, service = endpoint("w", "127.0.0.2"), echo()
        found = decide("10.10.0.1", 80, target, service)
        assert hop(found) == (RouteKind.HBONE, "127.0.0.2:8080", ("127.0.0.2", 15008))
        assert (found.service, found.destination) == (service, target)

    def test_a_service_by_name(self) -> None:
        found = decide("Example.com", 80, endpoint("w", "127.0.0.2"), echo())
        assert hop(found) == (RouteKind.HBONE, "127.0.0.2:8080", ("127.0.0.2", 15008))

    @pytest.mark.parametrize("name", ["echo", "echo.ns", "echo.ns.svc", "ECHO.ns.svc.cluster.local."])
    def test_a_service_by_its_short_names(self, name: str) -> None:
        service = dataclasses.replace(echo(), hostname="echo.ns.svc.cluster.local")
        target = pod("w", "127.0.0.2", services={service.key: {80: 8080}})
        assert decide(name, 80, service, target).service == service

    def test_an_unknown_name_is_refused(self) -> None:
        assert code_of("nobody.example", 80) == "unknown_hostname"
        assert code_of("not a name", 80) == "unknown_hostname"

    def test_a_name_that_is_not_exported_is_unknown(self) -> None:
        hidden = dataclasses.replace(echo(), namespace="other", visible_only_in_namespace=True)
        assert code_of("example.com", 80, hidden) == "unknown_hostname"

    def test_the_identities_of_the_service_are_accepted_too(self) -> None:
        extra = SpiffeId("cluster.local", "ns", "extra")
        target = endpoint("w", "127.0.0.2")
        found = decide("10.10.0.1", 80, target, echo(subject_alt_names=(extra, target.identity)))
        assert found.expected == (extra, target.identity)

    def test_an_empty_service_is_an_error_and_not_passed_through(self) -> None:
        assert code_of("10.10.0.1", 80, echo()) == "no_healthy_upstream"

    def test_an_undeclared_port_is_an_error_that_names_the_declared_ones(self) -> None:
        with pytest.raises(RouteError, match="no port 81") as caught:
            decide("10.10.0.1", 81, endpoint("w", "127.0.0.2"), echo())
        assert "80" in caught.value.hint

    def test_only_an_endpoint_that_maps_a_named_port_is_chosen(self) -> None:
        found = decide(
            "10.10.0.1",
            80,
            echo(ports={80: ServicePort(80)}),
            endpoint("unnamed", "127.0.0.3", ports={}),
            endpoint("named", "127.0.0.2", ports={80: 1234}),
        )
        assert found.authority == "127.0.0.2:1234"

    def test_a_retry_goes_to_another_endpoint(self) -> None:
        first, second = endpoint("a", "127.0.0.2"), endpoint("b", "127.0.0.3")
        found = decide("10.10.0.1", 80, echo(), first, second, excluded=frozenset({first.uid}))
        assert found.destination == second
        both = frozenset({first.uid, second.uid})
        assert code_of("10.10.0.1", 80, echo(), first, second, excluded=both) == "no_healthy_upstream"

    def test_a_host_network_pod_is_reached_through_its_service(self) -> None:
        found = decide("10.10.0.1", 80, echo(), endpoint("h", "192.168.0.1", host_network=True, hbone=False))
        assert hop(found) == (RouteKind.TCP, None, ("192.168.0.1", 8080))

    def test_a_passthrough_service_keeps_the_original_destination(self) -> None:
        service = echo(load_balancing=LoadBalancing(BalanceMode.PASSTHROUGH))
        found = decide("10.10.0.1", 80, service, endpoint("w", "127.0.0.2"))
        assert hop(found) == (RouteKind.PASSTHROUGH, None, ("10.10.0.1", 80))
        assert found.service == service

    @pytest.mark.parametrize(
        ("families", "dialled", "address"),
        [
            (IpFamilies.IPV4_ONLY, "2001:db8::a", "127.0.0.2"),
            (IpFamilies.IPV6_ONLY, "10.10.0.1", "2001:db8::2"),
            (IpFamilies.DUAL, "10.10.0.1", "127.0.0.2"),
            (IpFamilies.DUAL, "2001:db8::a", "2001:db8::2"),
            (IpFamilies.AUTOMATIC, "2001:db8::a", "2001:db8::2"),
        ],
    )
    def test_the_families_of_a_service(self, families: IpFamilies, dialled: str, address: str) -> None:
        found = decide(dialled, 80, echo(ip_families=families), endpoint("w", "127.0.0.2", "2001:db8::2"))
        assert found.address[0] == address

    def test_a_workload_known_by_name_is_dialled_by_name(self) -> None:
        found = decide("10.10.0.1", 80, echo(), endpoint("w", hbone=False, hostname="db.example"))
        assert hop(found) == (RouteKind.TCP, None, ("db.example", 8080))

    def test_a_family_that_the_workload_has_not_is_an_error(self) -> None:
        only_v6 = echo(ip_families=IpFamilies.IPV6_ONLY)
        assert code_of("10.10.0.1", 80, only_v6, endpoint("w", "127.0.0.2")) == "no_valid_destination"


class TestNetworks:
    def test_another_network_without_gateway(self) -> None:
        remote = endpoint("w", "127.0.0.2", network="remote")
        assert code_of("10.10.0.1", 80, echo(), remote) == "no_valid_destination"

    def test_another_network_with_gateway_says_what_is_missing(self) -> None:
        remote = endpoint("w", network="remote", network_gateway=BY_ADDRESS)
        assert code_of("10.10.0.1", 80, echo(), remote) == "unsupported_network"

    def test_the_own_network_has_a_name(self) -> None:
        service = dataclasses.replace(echo(), vips=(Vip("n1", "10.10.0.1"),))
        target = endpoint("w", "127.0.0.2", network="n1")
        assert decide("10.10.0.1", 80, service, target, network="n1").authority == "127.0.0.2:8080"
        assert decide("10.10.0.1", 80, service, target).kind is RouteKind.PASSTHROUGH

    def test_failover_keeps_to_the_own_network_while_it_can(self) -> None:
        service = echo(load_balancing=LoadBalancing(BalanceMode.FAILOVER, (Scope.NETWORK,)))
        local = endpoint("local", "127.0.0.2")
        remote = endpoint("remote", network="remote", network_gateway=BY_ADDRESS)
        assert decide("10.10.0.1", 80, service, local, remote).authority == "127.0.0.2:8080"
        down = dataclasses.replace(local, health=Health.UNHEALTHY)
        assert code_of("10.10.0.1", 80, service, down, remote) == "unsupported_network"


class TestWaypoints:
    @pytest.mark.parametrize(
        "address", [BY_HOSTNAME, BY_ADDRESS, GatewayAddress(NetworkAddress("", "10.10.0.9"))]
    )
    def test_a_service_waypoint_keeps_the_original_destination(self, address: GatewayAddress) -> None:
        service = echo(waypoint=address)
        found = decide("10.10.0.1", 80, service, endpoint("w", "127.0.0.2"), WAYPOINT, WAYPOINT_SERVICE)
        assert hop(found) == (RouteKind.WAYPOINT, "10.10.0.1:80", ("127.0.0.10", 15008))
        assert found.hbone_target == "10.10.0.1:80"
        assert (found.destination, found.service) == (WAYPOINT, service)
        assert found.expected == (WAYPOINT.identity,)

    def test_by_name_the_authority_is_the_virtual_address(self) -> None:
        service = echo(waypoint=BY_HOSTNAME)
        found = decide("example.com", 80, service, WAYPOINT, WAYPOINT_SERVICE)
        assert found.authority == "10.10.0.1:80"
        without = dataclasses.replace(service, vips=())
        assert decide("example.com", 80, without, WAYPOINT, WAYPOINT_SERVICE).authority == "example.com:80"

    def test_a_workload_waypoint_takes_what_is_dialled_by_address(self) -> None:
        target = endpoint("w", "127.0.0.2", waypoint=BY_HOSTNAME)
        found = decide("127.0.0.2", 80, target, WAYPOINT, WAYPOINT_SERVICE)
        assert hop(found) == (RouteKind.WAYPOINT, "127.0.0.2:80", ("127.0.0.10", 15008))

    def test_a_workload_waypoint_known_by_the_name_of_its_workload(self) -> None:
        instance = pod("waypoint", "127.0.0.10", hostname="wp.example")
        target = endpoint("w", "127.0.0.2", waypoint=GatewayAddress(("ns", "wp.example")))
        assert decide("127.0.0.2", 80, target, instance).address == ("127.0.0.10", 15008)

    def test_service_traffic_does_not_use_the_waypoint_of_the_workload(self) -> None:
        target = endpoint("w", "127.0.0.2", waypoint=BY_HOSTNAME)
        found = decide("10.10.0.1", 80, echo(), target, WAYPOINT, WAYPOINT_SERVICE)
        assert found.kind is RouteKind.HBONE

    def test_workload_traffic_does_not_use_the_waypoint_of_the_service(self) -> None:
        found = decide(
            "127.0.0.2",
            80,
            echo(waypoint=BY_HOSTNAME),
            endpoint("w", "127.0.0.2"),
            WAYPOINT,
            WAYPOINT_SERVICE,
        )
        assert found.kind is RouteKind.HBONE

    def test_the_waypoint_of_the_source_is_of_no_importance(self) -> None:
        source = dataclasses.replace(SOURCE, waypoint=BY_HOSTNAME)
        found = decide("127.0.0.2", 80, pod("w", "127.0.0.2", hbone=False), source=source)
        assert found.kind is RouteKind.TCP

    def test_a_waypoint_of_the_other_family(self) -> None:
        target = endpoint("w", "ff06::c3", waypoint=BY_ADDRESS)
        found = decide("ff06::c3", 80, target, WAYPOINT)
        assert hop(found) == (RouteKind.WAYPOINT, "[ff06::c3]:80", ("127.0.0.10", 15008))

    def test_a_waypoint_comes_before_passthrough(self) -> None:
        service = echo(waypoint=BY_HOSTNAME, load_balancing=LoadBalancing(BalanceMode.PASSTHROUGH))
        assert decide("10.10.0.1", 80, service, WAYPOINT, WAYPOINT_SERVICE).kind is RouteKind.WAYPOINT

    def test_a_waypoint_needs_no_endpoint_of_the_service(self) -> None:
        found = decide("10.10.0.1", 80, echo(waypoint=BY_HOSTNAME), WAYPOINT, WAYPOINT_SERVICE)
        assert found.kind is RouteKind.WAYPOINT

    @pytest.mark.parametrize("items", [(), (WAYPOINT_SERVICE,)])
    def test_an_unknown_waypoint_refuses_and_is_not_passed_by(self, items: tuple[Service, ...]) -> None:
        target = endpoint("w", "127.0.0.2", waypoint=BY_HOSTNAME)
        assert code_of("10.10.0.1", 80, echo(waypoint=BY_HOSTNAME), target, *items) == "unknown_waypoint"
        assert code_of("127.0.0.2", 80, target, *items) == "unknown_waypoint"

    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            ((75, 25), 0.25),
            ((95, 5), 0.05),
            ((0, 100), 1.0),
            ((100, 0), 0.0),
            ((0, 0), 0.0),
        ],
    )
    def test_a_canary_takes_its_share_of_the_connections(
        self, weights: tuple[int, int], expected: float
    ) -> None:
        state = build_snapshot(
            workloads=[SOURCE, WAYPOINT, CANARY],
            services=[shared(*weights), WAYPOINT_SERVICE, CANARY_SERVICE],
            policies=[],
        )
        rng = random.Random(11)
        count = 4000
        chosen = [decide_outbound(state, SOURCE, "10.10.0.1", 80, rng=rng).destination for _ in range(count)]
        assert set(chosen) <= {WAYPOINT, CANARY}
        tolerance = 4 * (expected * (1 - expected) / count) ** 0.5  # four standard deviations
        assert abs(chosen.count(CANARY) / count - expected) <= tolerance

    @pytest.mark.parametrize("items", [(), (CANARY_SERVICE,)])
    def test_the_waypoint_serves_when_the_canary_has_no_instance(self, items: tuple[Service, ...]) -> None:
        found = decide("10.10.0.1", 80, shared(0, 100), WAYPOINT, WAYPOINT_SERVICE, *items)
        assert found.destination == WAYPOINT

    def test_the_waypoint_serves_when_the_canary_was_tried_in_vain(self) -> None:
        items = (shared(0, 100), WAYPOINT, WAYPOINT_SERVICE, CANARY, CANARY_SERVICE)
        assert decide("10.10.0.1", 80, *items).destination == CANARY
        found = decide("10.10.0.1", 80, *items, excluded=frozenset({CANARY.uid}))
        assert found.destination == WAYPOINT

    @pytest.mark.parametrize("source", [WAYPOINT, CANARY])
    @pytest.mark.parametrize("weights", [(50, 50), (100, 0)])
    def test_from_either_of_two_waypoints_straight_to_the_workload(
        self, source: Workload, weights: tuple[int, int]
    ) -> None:
        target = endpoint("w", "127.0.0.2")
        items = (target, shared(*weights), WAYPOINT_SERVICE, CANARY_SERVICE)
        found = decide("10.10.0.1", 80, *items, source=source, source_ip=source.addresses[0])
        assert hop(found) == (RouteKind.HBONE, "127.0.0.2:8080", ("127.0.0.2", 15008))

    def test_another_instance_is_chosen_when_one_was_tried(self) -> None:
        other = dataclasses.replace(WAYPOINT, uid="Kubernetes//Pod/ns/other", addresses=("127.0.0.11",))
        items = (echo(waypoint=BY_HOSTNAME), WAYPOINT, other, WAYPOINT_SERVICE)
        found = decide("10.10.0.1", 80, *items, excluded=frozenset({WAYPOINT.uid}))
        assert found.destination == other

    def test_from_the_waypoint_itself_straight_to_the_workload(self) -> None:
        target = endpoint("w", "127.0.0.2", waypoint=BY_HOSTNAME)
        items = (target, echo(waypoint=BY_HOSTNAME), WAYPOINT_SERVICE)
        for host, port in (("127.0.0.2", 8080), ("10.10.0.1", 80)):
            found = decide(host, port, *items, source=WAYPOINT, source_ip="127.0.0.10")
            assert hop(found) == (RouteKind.HBONE, "127.0.0.2:8080", ("127.0.0.2", 15008))

    def test_from_another_address_than_the_waypoints_it_is_not_the_waypoint(self) -> None:
        target = endpoint("w", "127.0.0.2", waypoint=BY_HOSTNAME)
        items = (target, WAYPOINT_SERVICE)
        found = decide("127.0.0.2", 8080, *items, source=WAYPOINT, source_ip="127.0.0.77")
        assert found.kind is RouteKind.WAYPOINT

    def test_the_same_account_does_not_make_a_workload_the_waypoint(self) -> None:
        twin = pod("twin", "127.0.0.12", service_account="waypoint")
        target = endpoint("w", "127.0.0.2", waypoint=BY_HOSTNAME)
        items = (target, WAYPOINT, WAYPOINT_SERVICE)
        found = decide("127.0.0.2", 8080, *items, source=twin, source_ip="127.0.0.12")
        assert found.kind is RouteKind.WAYPOINT

    def test_a_sidecar_has_evaluated_the_rules_and_passes_waypoints_by(self) -> None:
        source = dataclasses.replace(SOURCE, sidecar=True)
        service = echo(waypoint=BY_HOSTNAME)
        found = decide("10.10.0.1", 80, service, endpoint("w", "127.0.0.2"), source=source)
        assert found.kind is RouteKind.HBONE


@given(st.text(max_size=40), st.integers(1, 65535))
def test_any_host_gives_a_route_or_a_route_error(host: str, port: int) -> None:
    try:
        route = decide(host, port, echo(), endpoint("w", "127.0.0.2"))
    except RouteError as error:
        assert error.code
        return
    assert route.kind in RouteKind


def test_no_address_at_all_is_an_error() -> None:
    with pytest.raises(RouteError, match="no address"):
        select_address(pod("w"), None, None)


targets = st.builds(
    lambda number, hbone, waypoint, health, remote: endpoint(
        f"w{number}",
        f"127.0.1.{number}",
        hbone=hbone,
        waypoint=BY_HOSTNAME if waypoint else None,
        health=health,
        network="remote" if remote else "",
    ),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from(Health),
    st.booleans(),
)


@given(
    st.lists(targets, max_size=5, unique_by=lambda one: one.uid),
    st.booleans(),
    st.booleans(),
    st.sampled_from(BalanceMode),
    st.sampled_from(["10.10.0.1", "example.com", *(f"127.0.1.{number}" for number in range(1, 10))]),
)
def test_a_waypoint_is_never_passed_by_and_a_tunnel_is_never_left_out(
    found: list[Workload], for_service: bool, exists: bool, mode: BalanceMode, host: str
) -> None:
    service = echo(waypoint=BY_HOSTNAME if for_service else None, load_balancing=LoadBalancing(mode))
    present = [WAYPOINT, WAYPOINT_SERVICE] if exists else []
    dialled = next((one for one in found if host in one.addresses and not one.network), None)
    through_waypoint = (
        for_service if host in ("10.10.0.1", "example.com") else bool(dialled and dialled.waypoint)
    )
    try:
        route = decide(host, 80, service, *found, *present)
    except RouteError:
        return
    assert (route.kind is RouteKind.WAYPOINT) is through_waypoint
    if through_waypoint:
        assert route.destination == WAYPOINT
    elif route.destination is not None:
        tunnelled = route.destination.tunnel_protocol is TunnelProtocol.HBONE
        assert route.kind is (RouteKind.HBONE if tunnelled else RouteKind.TCP)
        assert route.destination.identity in route.expected or not tunnelled
