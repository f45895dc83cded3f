"""Choice of an endpoint: ports, weights, locality."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh.balance import Choice, choose_endpoint, prefer, rank
from ztun.mesh.model import (
    ApplicationTunnel,
    AppTunnelProtocol,
    BalanceMode,
    LoadBalancing,
    Locality,
    Scope,
    Service,
    ServicePort,
    Workload,
)
from ztun.mesh.snapshot import build_snapshot

pytestmark = pytest.mark.unit

FAILOVER = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
SOURCE = Workload("source", "source", "ns", network="n", locality=Locality("r", "z"), node="node")


def endpoint(name: str, ports: dict[int, int] | None = None, **values: Any) -> Workload:
    values.setdefault("addresses", ("10.0.0.1",))
    return Workload(name, name, "ns", services={("ns", "svc"): ports or {}}, **values)


def choose(service: Service, *endpoints: Workload, port: int = 80, **options: Any) -> Choice | None:
    state = build_snapshot(workloads=endpoints, services=[service], policies=[])
    return choose_endpoint(state, service, port, SOURCE, rng=random.Random(1), **options)


def svc(target: int = 8080, mode: BalanceMode = BalanceMode.UNSPECIFIED, *preference: Scope) -> Service:
    ports = {80: ServicePort(80, target)}
    return Service("svc", "ns", "svc", ports=ports, load_balancing=LoadBalancing(mode, preference))


def test_the_mapping_of_the_endpoint_comes_before_the_target_port() -> None:
    assert choose(svc(8080), endpoint("a", {80: 1234})) == Choice(endpoint("a", {80: 1234}), 1234)
    found = choose(svc(8080), endpoint("a"))
    assert found is not None
    assert found.port == 8080


def test_a_named_target_port_needs_an_endpoint_that_maps_it() -> None:
    found = choose(svc(0), endpoint("unmapped"), endpoint("mapped", {80: 1234}))
    assert found is not None
    assert (found.workload.name, found.port) == ("mapped", 1234)
    assert choose(svc(0), endpoint("unmapped")) is None


def test_a_port_that_the_service_does_not_declare_has_no_endpoint() -> None:
    assert choose(svc(), endpoint("a", {81: 81}), port=81) is None


def test_a_waypoint_with_an_application_tunnel_needs_no_declared_port() -> None:
    tunnel = ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)
    found = choose(svc(), endpoint("w", application_tunnel=tunnel), port=15008, for_waypoint=True)
    assert found is not None
    assert found.port == 15008
    assert choose(svc(), endpoint("w"), port=15008, for_waypoint=True) is None


def test_excluded_unreachable_and_weightless_endpoints_are_never_chosen() -> None:
    assert choose(svc(), endpoint("a"), excluded=frozenset({"a"})) is None
    assert choose(svc(), endpoint("a", addresses=())) is None
    assert choose(svc(), endpoint("a", capacity=0)) is None
    named = choose(svc(), endpoint("a", addresses=(), hostname="a.example"))
    assert named is not None


def test_weights_are_honoured() -> None:
    service = svc()
    state = build_snapshot(
        workloads=[endpoint("heavy", capacity=3), endpoint("light"), endpoint("none", capacity=0)],
        services=[service],
        policies=[],
    )
    rng = random.Random(42)
    drawn = Counter(
        choice.workload.name
        for _ in range(4000)
        if (choice := choose_endpoint(state, service, 80, SOURCE, rng=rng)) is not None
    )
    assert set(drawn) == {"heavy", "light"}
    assert 2800 < drawn["heavy"] < 3200


def test_strict_keeps_full_matches_only() -> None:
    service = svc(8080, BalanceMode.STRICT, Scope.NODE)
    assert choose(service, endpoint("far", node="other")) is None
    found = choose(service, endpoint("far", node="other"), endpoint("near", node="node"))
    assert found is not None
    assert found.workload.name == "near"


PLACES = {
    "network, region, zone": {"network": "n", "locality": Locality("r", "z")},
    "network, region": {"network": "n", "locality": Locality("r", "x")},
    "network": {"network": "n", "locality": Locality("x", "z")},
    "region, zone of another network": {"network": "m", "locality": Locality("r", "z")},
    "nothing": {"network": "m", "locality": Locality("x", "z")},
}


def test_failover_tiers() -> None:
    service = svc(8080, BalanceMode.FAILOVER, *FAILOVER)
    left = [endpoint(name, **place) for name, place in PLACES.items()]
    order = []
    while left:
        found = choose(service, *left)
        assert found is not None
        order.append(found.workload.name)
        left = [one for one in left if one.name != found.workload.name]
    assert order == list(PLACES)


def test_an_endpoint_without_address_never_wins_by_locality() -> None:
    service = svc(8080, BalanceMode.FAILOVER, *FAILOVER)
    near = endpoint("near", addresses=(), network="n", locality=Locality("r", "z"))
    found = choose(service, near, endpoint("far", network="m"))
    assert found is not None
    assert found.workload.name == "far"


places = st.builds(
    Workload,
    st.just("u"),
    st.just("n"),
    st.just("ns"),
    network=st.sampled_from("nm"),
    node=st.sampled_from(["", "node"]),
    locality=st.builds(Locality, st.sampled_from("rx"), st.sampled_from("zx"), st.sampled_from(["", "s"])),
)
preferences = st.permutations(list(Scope)).flatmap(
    lambda all_: st.integers(0, 6).map(lambda n: tuple(all_[:n]))
)


@given(st.lists(places, max_size=6), preferences, st.sampled_from(BalanceMode), places)
def test_preference_only_narrows_and_failover_never_empties(
    candidates: list[Workload], preference: tuple[Scope, ...], mode: BalanceMode, source: Workload
) -> None:
    choices = [Choice(one, 1) for one in candidates]
    kept = prefer(svc(8080, mode, *preference), choices, source)
    assert all(choice in choices for choice in kept)
    if mode is not BalanceMode.STRICT:
        assert bool(kept) is bool(choices)


@given(places, places, st.permutations([scope for scope in Scope if scope is not Scope.NETWORK]))
def test_no_tier_of_another_network_reaches_one_of_the_own(
    near: Workload, far: Workload, rest: list[Scope]
) -> None:
    preference = (Scope.NETWORK, *rest)
    if near.network == "n" and far.network == "m":
        source = Workload("s", "s", "ns", network="n")
        assert rank(preference, near, source) > rank(preference, far, source)
