"""Services without an address get one: the same on every proxy, whatever order the documents come in."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh.document import Document
from ztun.mesh.lookup import RouteKind, decide_outbound
from ztun.mesh.model import IpFamilies, NamespacedName, Service, Vip
from ztun.mesh.snapshot import Snapshot
from ztun.resources.auto_allocation import IPV4_NETWORK, IPV6_NETWORK, Unaddressed, allocate
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit

OPT_OUT = {"networking.istio.io/enable-autoallocate-ip": "false"}


def load(*objects: dict[str, Any], network: str = "") -> Snapshot:
    documents, problems = parse_documents(yaml.safe_dump_all(objects), file="mesh.yaml")
    assert problems == []
    return translate(documents, settings=MeshSettings(network=network)).snapshot


def service(name: str = "echo", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "ns", "labels": labels or {}},
        "spec": {"ports": [{"port": 80}]} | spec,
    }


def entry(
    *hosts: str, labels: dict[str, str] | None = None, status: Any = None, created: str = "", **spec: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": hosts[0].strip("*."), "namespace": "ns", "labels": labels or {}}
    if created:
        metadata["creationTimestamp"] = created
    found: dict[str, Any] = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": metadata,
        "spec": {
            "hosts": list(hosts),
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
            "resolution": "STATIC",
        }
        | spec,
    }
    return found | ({"status": status} if status is not None else {})


def vips(state: Snapshot, host: str) -> list[str]:
    return [vip.ip for vip in state.services["ns", host].vips]


def assert_allocated(found: list[str]) -> None:
    v4, v6 = map(ipaddress.ip_address, found)
    assert v4 in IPV4_NETWORK
    assert v6 in IPV6_NETWORK
    assert int(v6) & 0xFFFFFFFF == int(v4)
    assert v4.packed[3] not in (0, 255)


class TestWhoGetsOne:
    def test_a_service_without_cluster_ip(self) -> None:
        assert_allocated(vips(load(service()), "echo.ns.svc.cluster.local"))

    def test_every_host_of_an_entry_gets_its_own(self) -> None:
        state = load(entry("a.example", "b.example"))
        first, second = vips(state, "a.example"), vips(state, "b.example")
        assert_allocated(first)
        assert_allocated(second)
        assert not set(first) & set(second)

    def test_the_network_is_that_of_the_mesh(self) -> None:
        state = load(entry("a.example"), network="n1")
        assert {vip.network for vip in state.services["ns", "a.example"].vips} == {"n1"}

    @pytest.mark.parametrize("family", ["IPv4", "IPv6"])
    def test_a_service_of_one_family_gets_one_address(self, family: str) -> None:
        (found,) = vips(load(service(ipFamilies=[family])), "echo.ns.svc.cluster.local")
        assert f"IPv{ipaddress.ip_address(found).version}" == family

    @pytest.mark.parametrize(
        ("document", "host"),
        [
            (service(clusterIP="None"), "echo.ns.svc.cluster.local"),
            (service(type="ExternalName", externalName="db.example"), "echo.ns.svc.cluster.local"),
            (service(labels=OPT_OUT), "echo.ns.svc.cluster.local"),
            (entry("a.example", labels=OPT_OUT), "a.example"),
            (entry("a.example", labels={next(iter(OPT_OUT)): "False"}), "a.example"),
            (entry("a.example", resolution="NONE"), "a.example"),
            (entry("*.example"), "*.example"),
        ],
        ids=["headless", "alias", "opt-out", "entry-opt-out", "opt-out-case", "passthrough", "wildcard"],
    )
    def test_these_do_not(self, document: dict[str, Any], host: str) -> None:
        assert vips(load(document), host) == []

    def test_own_addresses_stay_as_they_are(self) -> None:
        assert vips(load(service(clusterIP="10.10.0.1")), "echo.ns.svc.cluster.local") == ["10.10.0.1"]
        assert vips(load(entry("a.example", addresses=["10.10.0.2"])), "a.example") == ["10.10.0.2"]

    def test_what_istiod_recorded_is_kept(self) -> None:
        recorded = [
            {"value": "240.240.9.9", "host": "a.example"},
            {"value": "2001:2:0:0::9", "host": "A.example"},
            {"value": "240.240.9.10", "host": "b.example"},
            {"value": "nonsense", "host": "a.example"},
            {"host": "a.example"},
        ]
        state = load(entry("a.example", "b.example", "c.example", status={"addresses": recorded}))
        assert state.problems == ()
        assert vips(state, "a.example") == ["240.240.9.9", "2001:2::9"]
        assert vips(state, "b.example") == ["240.240.9.10"]
        assert_allocated(vips(state, "c.example"))

    def test_a_service_of_the_cluster_comes_before_an_entry_of_its_name(self) -> None:
        host = "echo.ns.svc.cluster.local"
        state = load(service(clusterIP="10.10.0.1"), entry(host))
        assert vips(state, host) == ["10.10.0.1"]


class TestWhichOne:
    def test_an_address_that_somebody_has_is_not_given(self) -> None:
        (v4, v6) = vips(load(entry("a.example")), "a.example")
        for address in (v4, v6):
            moved = vips(load(entry("a.example"), entry("other.example", addresses=[address])), "a.example")
            assert_allocated(moved)
            assert not set(moved) & {v4, v6}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"podIP": v4},
        }
        assert v4 not in vips(load(entry("a.example"), pod), "a.example")

    def test_the_older_of_two_keeps_the_address_they_collide_on(self) -> None:
        young, old = unaddressed("young", created="2026-02-01T00:00:00Z"), unaddressed("old", created="2025")
        undated = unaddressed("undated")
        alone = addresses(old, slots=1)
        assert addresses(young, old, undated, slots=1) == alone
        assert alone == {"old": ["240.240.0.1", "2001:2::f0f0:1"]}

    def test_when_all_are_taken_the_rest_is_told_and_stays_without(self) -> None:
        keys = [unaddressed(name) for name in "abcd"]
        services = dict(keys)
        given, problems = allocate(services, documents(services), (), "", slots=3)
        assert sorted(given) == [("ns", "a"), ("ns", "b"), ("ns", "c")]
        assert [(one.severity, one.object) for one in problems] == [("warning", "Service ns/d")]

    @given(st.lists(st.sampled_from([f"s{n}" for n in range(40)]), unique=True), st.randoms())
    def test_the_order_does_not_matter(self, names: list[str], rng: random.Random) -> None:
        keys = [unaddressed(name) for name in names]
        shuffled = rng.sample(keys, len(keys))
        found = addresses(*keys, slots=43)
        assert addresses(*shuffled, slots=43) == found
        everything = [ip for pair in found.values() for ip in pair]
        assert len(everything) == len(set(everything)) == 2 * len(names)

    def test_few_move_when_others_come_and_go(self) -> None:
        names = [f"svc-{number}" for number in range(300)]
        before = addresses(*map(unaddressed, names))
        after = addresses(*map(unaddressed, [*names[1:], "new", "newer", "newest"]))
        moved = [name for name in names[1:] if before[name] != after[name]]
        assert len(moved) <= 1

    def test_it_never_changes(self) -> None:
        """Proxies of different releases serve one mesh."""
        assert addresses(unaddressed("echo")) == {"echo": ["240.240.26.180", "2001:2::f0f0:1ab4"]}


def unaddressed(name: str, created: str = "") -> tuple[NamespacedName, Service]:
    return ("ns", name), Service(name, "ns", name, created=created)


def documents(services: dict[NamespacedName, Service]) -> dict[NamespacedName, Unaddressed]:
    return {key: Unaddressed(Document("v1", "Service", key[0], key[1], {})) for key in services}


def addresses(*keys: tuple[NamespacedName, Service], slots: int = 65_011) -> dict[str, list[str]]:
    services = dict(keys)
    given, _ = allocate(services, documents(services), (), "", slots=slots)
    return {key[1]: [vip.ip for vip in one.vips] for key, one in given.items()}


def test_families_are_those_of_the_service() -> None:
    key, plain = unaddressed("a")
    (v4, v6) = addresses((key, plain))["a"]
    only = Service("a", "ns", "a", ip_families=IpFamilies.IPV6_ONLY)
    given, _ = allocate({key: only}, documents({key: only}), (), "net")
    assert given[key].vips == (Vip("net", v6),)
    assert v4 != v6


def test_a_connection_to_the_address_goes_to_the_service() -> None:
    endpoint = {"address": "192.0.2.7", "ports": {"tls": 8443}}
    client = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client", "namespace": "ns"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"podIP": "10.0.0.1"},
    }
    state = load(entry("a.example", endpoints=[endpoint]), client)
    source = state.workload_named("ns", "client")
    assert source is not None
    for ip in vips(state, "a.example"):
        route = decide_outbound(state, source, ip, 443, rng=random.Random(0))
        assert (route.kind, route.address) == (RouteKind.TCP, ("192.0.2.7", 8443))
        assert route.service is not None
        assert route.service.hostname == "a.example"
