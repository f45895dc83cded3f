"""The indices of a snapshot: who owns an address or a name, and who may see it."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh.model import (
    Authorization,
    Health,
    LoadBalancing,
    PolicyAction,
    PolicyScope,
    Service,
    ServicePort,
    TunnelProtocol,
    Vip,
    Workload,
)
from ztun.mesh.snapshot import Snapshot, build_snapshot

pytestmark = pytest.mark.unit


def service(namespace: str = "a", host: str = "svc.example", *vips: str, **values: Any) -> Service:
    return Service(
        host, namespace, host, tuple(vip(one) for one in vips), {80: ServicePort(80, 8080)}, **values
    )


def vip(text: str, network: str = "") -> Vip:
    if "/" not in text:
        return Vip(network, text)
    cidr = ipaddress.ip_network(text)
    return Vip(network, str(cidr.network_address), cidr)


def workload(name: str = "w", *addresses: str, **values: Any) -> Workload:
    values.setdefault("uid", f"Kubernetes//Pod/ns/{name}")
    return Workload(name=name, namespace="ns", addresses=addresses, **values)


def snapshot(*items: Service | Workload | Authorization) -> Snapshot:
    return build_snapshot(
        workloads=[item for item in items if isinstance(item, Workload)],
        services=[item for item in items if isinstance(item, Service)],
        policies=[item for item in items if isinstance(item, Authorization)],
    )


def namespace_of(found: Service | None) -> str | None:
    return found.namespace if found is not None else None


class TestVips:
    def test_own_namespace_then_canonical_then_first(self) -> None:
        state = snapshot(
            service("a", "h", "10.1.0.1"),
            service("b", "h", "10.1.0.1", canonical=True),
            service("c", "h", "10.1.0.1"),
        )
        assert namespace_of(state.service_by_vip("", "10.1.0.1", "c")) == "c"
        assert namespace_of(state.service_by_vip("", "10.1.0.1", "x")) == "b"
        plain = snapshot(service("a", "h", "10.1.0.1"), service("c", "h", "10.1.0.1"))
        assert namespace_of(plain.service_by_vip("", "10.1.0.1", "x")) == "a"

    def test_a_vip_belongs_to_its_network(self) -> None:
        state = snapshot(dataclasses.replace(service(), vips=(vip("10.1.0.1", "n1"),)))
        assert state.service_by_vip("n1", "10.1.0.1", None) is not None
        assert state.service_by_vip("", "10.1.0.1", None) is None

    def test_the_longest_prefix_counts_for_each_family(self) -> None:
        state = snapshot(
            service("a", "wide", "10.0.0.0/8", "2001:db8::/32"),
            service("a", "narrow", "10.1.0.0/16", "2001:db8:1::/48"),
        )
        found = {
            ip: getattr(state.service_by_vip("", ip, "x"), "hostname", None)
            for ip in ("10.1.2.3", "10.2.2.3", "11.0.0.1", "2001:db8:1::5", "2001:db8:2::5", "2001:db9::1")
        }
        assert list(found.values()) == ["narrow", "wide", None, "narrow", "wide", None]

    def test_exact_beats_a_network_and_the_own_namespace_beats_prefix_length(self) -> None:
        state = snapshot(
            service("a", "exact", "10.1.0.1"),
            service("b", "wide", "10.0.0.0/8"),
            service("c", "narrow", "10.1.0.0/24"),
        )
        assert namespace_of(state.service_by_vip("", "10.1.0.1", "b")) == "a"
        assert namespace_of(state.service_by_vip("", "10.1.0.2", "b")) == "b"
        assert namespace_of(state.service_by_vip("", "10.1.0.2", "x")) == "c"

    def test_a_full_length_network_is_an_exact_vip(self) -> None:
        state = snapshot(service("a", "one", "10.1.0.1/32"), service("a", "net", "10.1.0.0/24"))
        found = state.service_by_vip("", "10.1.0.1", "x")
        assert found is not None
        assert found.hostname == "one"

    def test_an_exact_vip_that_is_not_visible_does_not_hide_a_network(self) -> None:
        state = snapshot(
            service("a", "private", "10.1.0.1", visible_only_in_namespace=True),
            service("b", "net", "10.1.0.0/24"),
        )
        assert namespace_of(state.service_by_vip("", "10.1.0.1", "x")) == "b"
        assert namespace_of(state.service_by_vip("", "10.1.0.1", "a")) == "a"


class TestVisibility:
    @pytest.mark.parametrize(
        ("export_to", "seen_by"),
        [
            (("*",), ["a", "b", None]),
            ((".",), ["a", None]),
            (("a",), ["a", None]),
            (("b",), ["b", None]),
            (("~",), [None]),
        ],
    )
    def test_export_to(self, export_to: tuple[str, ...], seen_by: list[str | None]) -> None:
        state = snapshot(service("a", "h", "10.1.0.1", export_to=export_to))
        clients: list[str | None] = ["a", "b", None]
        assert [one for one in clients if state.service_by_vip("", "10.1.0.1", one)] == seen_by
        assert [one for one in clients if state.service_by_hostname("h", one)] == seen_by

    def test_namespace_visibility(self) -> None:
        state = snapshot(service("a", "h", "10.1.0.1", visible_only_in_namespace=True))
        assert state.service_by_hostname("h", "a") is not None
        assert state.service_by_hostname("h", "b") is None


class TestHostnames:
    def test_exact_then_the_most_specific_wildcard(self) -> None:
        state = snapshot(
            service("a", "x.b.c"), service("a", "*.b.c"), service("a", "*.c"), service("b", "x.b.c")
        )
        found = {
            host: getattr(state.service_by_hostname(host, "a"), "hostname", None)
            for host in ("x.b.c", "y.b.c", "z.y.b.c", "q.c", "c", "X.B.C.", "")
        }
        assert list(found.values()) == ["x.b.c", "*.b.c", "*.b.c", "*.c", None, "x.b.c", None]
        assert namespace_of(state.service_by_hostname("x.b.c", "b")) == "b"

    def test_all_services_with_a_hostname(self) -> None:
        state = snapshot(service("a", "h"), service("b", "h"), service("a", "other"))
        assert [one.namespace for one in state.services_with_hostname("H")] == ["a", "b"]


class TestWorkloads:
    def test_a_pod_comes_before_an_entry_and_a_member_before_a_stranger(self) -> None:
        entry = workload(
            "e",
            "10.0.0.1",
            uid="Kubernetes/networking.istio.io/WorkloadEntry/ns/e",
            tunnel_protocol=TunnelProtocol.HBONE,
        )
        plain = workload("p", "10.0.0.1")
        member = workload("m", "10.0.0.1", tunnel_protocol=TunnelProtocol.HBONE)
        assert snapshot(entry, plain).workload_by_address("", "10.0.0.1") == plain
        assert snapshot(entry, plain, member).workload_by_address("", "10.0.0.1") == member

    def test_host_network_pods_own_no_address(self) -> None:
        state = snapshot(workload("h", "192.168.0.1", host_network=True, node="n"))
        assert state.workload_by_address("", "192.168.0.1") is None
        assert [one.name for one in state.workloads_of_node("n")] == ["h"]

    def test_found_by_name_uid_and_every_address(self) -> None:
        dual = workload("d", "10.0.0.1", "2001:db8::1")
        state = snapshot(dual, workload("other", "10.0.0.1", network="n2"))
        assert state.workload_by_uid(dual.uid) == dual
        assert state.workload_named("ns", "d") == dual
        assert state.workload_by_address("", "2001:db8::1") == dual
        assert state.workload_by_address("n2", "10.0.0.1") != dual
        assert state.workloads_of_node("") == ()


class TestEndpoints:
    def test_unready_ones_only_where_the_service_wants_them(self) -> None:
        strict, lax = (
            service("a", "strict"),
            service("a", "lax", load_balancing=LoadBalancing(allow_unhealthy=True)),
        )
        services = {strict.key: {80: 1}, lax.key: {80: 2}, ("a", "unknown"): {80: 3}}
        state = snapshot(
            strict,
            lax,
            workload("up", services=services),
            workload("down", services=services, health=Health.UNHEALTHY),
        )
        assert [one.workload.name for one in state.endpoints(strict.key)] == ["up"]
        assert [one.workload.name for one in state.endpoints(lax.key)] == ["up", "down"]
        assert state.endpoints(("a", "unknown")) == ()


def policy(name: str, scope: PolicyScope, namespace: str = "ns", **values: Any) -> Authorization:
    return Authorization(name, namespace, scope, PolicyAction.ALLOW, (), **values)


class TestPolicies:
    def test_mesh_namespace_and_selected_ones_apply(self) -> None:
        selected = workload("s", authorization_policies=("ns/sel", "ns/gone"))
        state = snapshot(
            selected,
            policy("mesh", PolicyScope.GLOBAL, "istio-system"),
            policy("own", PolicyScope.NAMESPACE),
            policy("other", PolicyScope.NAMESPACE, "elsewhere"),
            policy("sel", PolicyScope.WORKLOAD_SELECTOR),
            policy("unselected", PolicyScope.WORKLOAD_SELECTOR),
        )
        assert [one.name for one in state.policies_for(selected)] == ["mesh", "own", "sel"]
        stranger = dataclasses.replace(workload("x"), namespace="empty")
        assert [one.name for one in state.policies_for(stranger)] == ["mesh"]

    def test_attached_ones_are_left_to_the_waypoint(self) -> None:
        target = ("", "Service", "echo")
        state = snapshot(policy("attached", PolicyScope.NAMESPACE, target_refs=(target,)))
        assert state.policies_for(workload()) == ()
        assert [one.name for one in state.policies_targeting("ns", *target)] == ["attached"]
        assert state.policies_targeting("other", *target) == ()


cidrs = st.builds(
    lambda ip, length: ipaddress.ip_network((ip, length), strict=False),
    st.ip_addresses(v=4, network="10.0.0.0/28") | st.ip_addresses(v=4, network="10.0.1.0/30"),
    st.sampled_from([0, 8, 24, 28, 30, 31, 32]),
)
claims = st.lists(st.tuples(st.sampled_from("abc"), cidrs, st.booleans(), st.booleans()), max_size=8)


@given(claims, st.ip_addresses(v=4, network="10.0.0.0/23").map(str), st.sampled_from(["a", "b", "x", None]))
def test_lookup_by_vip_equals_a_search_of_all_services(
    claimed: list[tuple[str, ipaddress.IPv4Network, bool, bool]], ip: str, client: str | None
) -> None:
    services = [
        service(namespace, f"s{number}", str(cidr), canonical=canonical, visible_only_in_namespace=private)
        for number, (namespace, cidr, canonical, private) in enumerate(claimed)
    ]
    covering = [
        (found, cidr.prefixlen)
        for found, (_, cidr, _, private) in zip(services, claimed, strict=True)
        if ipaddress.ip_address(ip) in cidr and (not private or client in (None, found.namespace))
    ]
    # An exact address comes before every network; after that the ranks of ``service_by_vip``.
    ranks = [(length == 32, found.namespace == client, length, found.canonical) for found, length in covering]
    best = snapshot(*services).service_by_vip("", ip, client)
    assert (best is None) is (not ranks)
    if best is not None:
        assert ranks[[found for found, _ in covering].index(best)] == max(ranks)
