"""Services, EndpointSlices and ServiceEntries become services with the right endpoints, ports and visibility."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from certs.spiffe import SpiffeId
from ztun.mesh.model import BalanceMode, Health, IpFamilies, LoadBalancing, Scope, Service
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.services import declared_protocol
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit

ECHO = ("ns", "echo.ns.svc.cluster.local")


def load(*objects: dict[str, Any], clean: bool = True) -> Snapshot:
    documents, problems = parse_documents(yaml.safe_dump_all(objects), file="mesh.yaml")
    assert problems == []
    state = translate(documents, settings=MeshSettings()).snapshot
    assert not clean or state.problems == ()
    return state


def make(kind: str, name: str, *, api: str = "v1", **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns"} | rest.pop("metadata", {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata} | rest


def pod(
    name: str, ip: str, *, port: int | None = None, namespace: str = "ns", **labels: str
) -> dict[str, Any]:
    ports = [{"containerPort": port, "name": "app"}] if port else []
    return make(
        "Pod",
        name,
        metadata={"labels": {"app": "echo"} | labels, "namespace": namespace},
        spec={"containers": [{"name": "c", "ports": ports}]},
        status={"podIP": ip},
    )


def service(metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    spec = {"clusterIP": "10.10.0.1", "ports": [{"port": 80, "targetPort": 8080}]} | spec
    return make("Service", "echo", metadata=metadata or {}, spec=spec)


def only(state: Snapshot) -> Service:
    (found,) = state.services.values()
    return found


def endpoints(state: Snapshot, key: tuple[str, str] = ECHO) -> dict[str, dict[int, int]]:
    return {
        (*one.workload.addresses, one.workload.hostname)[0]: dict(one.ports) for one in state.endpoints(key)
    }


class TestServices:
    def test_a_service_and_its_pods(self) -> None:
        state = load(
            service(selector={"app": "echo"}),
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.2", version="v2"),
            pod("c", "10.0.0.3", app="other"),
            pod("d", "10.0.0.4", namespace="elsewhere"),
        )
        found = only(state)
        assert (found.key, found.canonical, found.headless) == (ECHO, True, False)
        assert [vip.ip for vip in found.vips] == ["10.10.0.1"]
        assert endpoints(state) == {"10.0.0.1": {80: 8080}, "10.0.0.2": {80: 8080}}

    def test_several_labels_all_count(self) -> None:
        state = load(
            service(selector={"app": "echo", "version": "v2"}),
            pod("a", "10.0.0.1", version="v1"),
            pod("b", "10.0.0.2", version="v2"),
        )
        assert list(endpoints(state)) == ["10.0.0.2"]

    def test_named_ports_are_each_pods_own(self) -> None:
        state = load(
            service(selector={"app": "echo"}, ports=[{"port": 80, "targetPort": "app"}, {"port": 90}]),
            pod("a", "10.0.0.1", port=1111),
            pod("b", "10.0.0.2", port=2222),
            pod("c", "10.0.0.3"),
        )
        assert endpoints(state) == {
            "10.0.0.1": {80: 1111, 90: 90},
            "10.0.0.2": {80: 2222, 90: 90},
            "10.0.0.3": {90: 90},
        }
        assert {number: port.target_port for number, port in only(state).ports.items()} == {80: 0, 90: 90}

    def test_a_named_port_that_no_pod_has_is_reported(self) -> None:
        wrong = service(selector={"app": "echo"}, ports=[{"port": 80, "targetPort": "http"}])
        state = load(wrong, pod("a", "10.0.0.1", port=1111), clean=False)
        assert [(one.severity, one.path) for one in state.problems] == [
            ("warning", "spec.ports[0].targetPort")
        ]
        assert load(wrong).problems == ()

    def test_udp_ports_are_left_out(self) -> None:
        state = load(service(ports=[{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]))
        assert list(only(state).ports) == [53]

    def test_headless(self) -> None:
        found = only(load(service(clusterIP="None")))
        assert (found.headless, found.vips) == (True, ())

    def test_without_selector_there_are_no_pods(self) -> None:
        assert endpoints(load(service(), pod("a", "10.0.0.1"))) == {}
        assert endpoints(load(service(selector={}), pod("a", "10.0.0.1"))) == {}

    def test_external_name(self) -> None:
        state = load(service(type="ExternalName", externalName="DB.example.", clusterIP=""))
        assert endpoints(state) == {"db.example": {80: 8080}}
        assert (only(state).vips, only(state).alias_of) == ((), "db.example")

    @pytest.mark.parametrize(
        ("spec", "families"),
        [
            ({}, IpFamilies.AUTOMATIC),
            ({"ipFamilies": ["IPv4"]}, IpFamilies.IPV4_ONLY),
            ({"ipFamilies": ["IPv6"]}, IpFamilies.IPV6_ONLY),
            ({"ipFamilies": ["IPv4", "IPv6"]}, IpFamilies.DUAL),
        ],
    )
    def test_families(self, spec: dict[str, Any], families: IpFamilies) -> None:
        assert only(load(service(**spec))).ip_families is families

    @pytest.mark.parametrize(
        ("spec", "annotation", "expected"),
        [
            ({}, None, LoadBalancing()),
            ({"internalTrafficPolicy": "Local"}, None, LoadBalancing(BalanceMode.STRICT, (Scope.NODE,))),
            (
                {"trafficDistribution": "PreferClose", "publishNotReadyAddresses": True},
                None,
                LoadBalancing(BalanceMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE), True),
            ),
            (
                {},
                "PreferSameNode",
                LoadBalancing(
                    BalanceMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE)
                ),
            ),
            ({"trafficDistribution": "Unheard"}, None, LoadBalancing()),
        ],
    )
    def test_locality(self, spec: dict[str, Any], annotation: str | None, expected: LoadBalancing) -> None:
        metadata = (
            {"annotations": {"networking.istio.io/traffic-distribution": annotation}} if annotation else {}
        )
        assert only(load(service(metadata, **spec))).load_balancing == expected

    @pytest.mark.parametrize(
        ("annotation", "export_to", "private"),
        [("", ("*",), False), (".", ("ns",), True), ("a, b", ("a", "b"), False), ("~", ("~",), False)],
    )
    def test_export_to(self, annotation: str, export_to: tuple[str, ...], private: bool) -> None:
        found = only(load(service({"annotations": {"networking.istio.io/exportTo": annotation}})))
        assert (found.export_to, found.visible_only_in_namespace) == (export_to, private)

    def test_unready_pods_count_only_where_wanted(self) -> None:
        unready = pod("a", "10.0.0.1")
        unready["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        assert endpoints(load(service(selector={"app": "echo"}), unready)) == {}
        wanted = service(selector={"app": "echo"}, publishNotReadyAddresses=True)
        assert list(endpoints(load(wanted, unready))) == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("name", "app_protocol", "protocol"),
    [
        ("tcp", "", "TCP"),
        ("tcp-echo", "", "TCP"),
        ("HTTP-web", "", "HTTP"),
        ("grpc-web-x", "", "GRPC-WEB"),
        ("echo", "", ""),
        ("tcpx", "", ""),
        ("http", "tls", "TLS"),
        ("", "kubernetes.io/h2c", "HTTP2"),
        ("", "example.com/thrift", "THRIFT"),
    ],
)
def test_declared_protocols(name: str, app_protocol: str, protocol: str) -> None:
    assert declared_protocol(name, app_protocol) == protocol


class TestSlices:
    def slice(self, *addresses: str, ready: bool | None = None, target: str = "") -> dict[str, Any]:
        endpoint: dict[str, Any] = {"addresses": list(addresses), "nodeName": "n1"}
        if ready is not None:
            endpoint["conditions"] = {"ready": ready}
        if target:
            endpoint["targetRef"] = {"kind": "Pod", "name": target}
        return make(
            "EndpointSlice",
            "echo-abc",
            api="discovery.k8s.io/v1",
            metadata={"labels": {"kubernetes.io/service-name": "echo"}},
            addressType="IPv4",
            endpoints=[endpoint],
            ports=[{"name": "", "port": 9090, "protocol": "TCP"}],
        )

    def test_a_service_without_selector_gets_its_endpoints_from_slices(self) -> None:
        state = load(service(), self.slice("10.9.0.1", "10.9.0.2"))
        assert endpoints(state) == {"10.9.0.1": {80: 9090}, "10.9.0.2": {80: 9090}}
        assert {one.node for one in state.workloads.values()} == {"n1"}

    def test_unready_endpoints(self) -> None:
        state = load(service(), self.slice("10.9.0.1", ready=False))
        assert endpoints(state) == {}
        assert [one.health for one in state.workloads.values()] == [Health.UNHEALTHY]

    def test_an_address_of_a_pod_stands_for_the_pod(self) -> None:
        state = load(service(), pod("a", "10.0.0.1"), self.slice("10.0.0.1"))
        assert endpoints(state) == {"10.0.0.1": {80: 9090}}
        assert list(state.workloads) == ["Kubernetes//Pod/ns/a"]

    def test_with_a_selector_the_pods_themselves_are_read(self) -> None:
        objects = (service(selector={"app": "echo"}), pod("a", "10.0.0.1"))
        state = load(*objects, self.slice("10.0.0.1", "10.0.0.99", target="a"))
        assert endpoints(state) == {"10.0.0.1": {80: 8080}}

    def test_a_slice_of_no_known_service_is_without_effect(self) -> None:
        assert not load(self.slice("10.9.0.1")).workloads

    def test_a_broken_address(self) -> None:
        state = load(service(), self.slice("10.9.0.999", "10.9.0.1"), clean=False)
        assert list(endpoints(state)) == ["10.9.0.1"]
        assert "'10.9.0.999' is not an IP address" in str(state.problems[0])


def entry(**spec: Any) -> dict[str, Any]:
    spec = {"ports": [{"number": 80, "name": "tcp-web", "protocol": "TCP", "targetPort": 8080}]} | spec
    return make("ServiceEntry", "ext", api="networking.istio.io/v1", spec=spec)


DB = ("ns", "db.example")


class TestServiceEntries:
    def test_static_endpoints(self) -> None:
        state = load(
            entry(
                hosts=["db.example", "www.example"],
                addresses=["10.20.0.1", "10.21.0.0/16", "10.22.0.1/32"],
                resolution="STATIC",
                endpoints=[
                    {"address": "10.9.0.1", "ports": {"tcp-web": 81}, "weight": 3},
                    {"address": "10.9.0.2"},
                ],
            )
        )
        assert list(state.services) == [DB, ("ns", "www.example")]
        for key in state.services:
            assert endpoints(state, key) == {"10.9.0.1": {80: 81}, "10.9.0.2": {80: 8080}}
        for ip in ("10.20.0.1", "10.21.7.7", "10.22.0.1"):
            assert state.service_by_vip("", ip, "x") == state.services[DB]
        assert sorted(one.capacity for one in state.workloads.values()) == [1, 3]

    def test_dns(self) -> None:
        state = load(entry(hosts=["db.example"], resolution="DNS"))
        assert endpoints(state, DB) == {"db.example": {80: 8080}}
        named = load(entry(hosts=["db.example"], resolution="DNS", endpoints=[{"address": "other.example"}]))
        assert endpoints(named, DB) == {"other.example": {80: 8080}}

    def test_none_passes_through(self) -> None:
        state = load(entry(hosts=["*.example"], addresses=["10.20.0.0/16"]))
        assert only(state).load_balancing.mode is BalanceMode.PASSTHROUGH

    def test_selected_workloads(self) -> None:
        vm = make(
            "WorkloadEntry",
            "vm",
            api="networking.istio.io/v1",
            spec={"address": "10.8.0.1", "labels": {"app": "echo"}, "ports": {"tcp-web": 82}},
        )
        state = load(
            entry(hosts=["db.example"], resolution="STATIC", workloadSelector={"labels": {"app": "echo"}}),
            vm,
            pod("a", "10.0.0.1"),
        )
        assert endpoints(state, DB) == {"10.0.0.1": {80: 8080}, "10.8.0.1": {80: 82}}

    def test_a_service_selects_workload_entries_too(self) -> None:
        vm = make(
            "WorkloadEntry",
            "vm",
            api="networking.istio.io/v1",
            spec={"address": "10.8.0.1", "labels": {"app": "echo"}},
        )
        assert endpoints(load(service(selector={"app": "echo"}), vm)) == {"10.8.0.1": {80: 8080}}

    def test_an_endpoint_at_the_address_of_a_pod_is_the_pod(self) -> None:
        inline = entry(hosts=["db.example"], resolution="STATIC", endpoints=[{"address": "10.0.0.1"}])
        state = load(inline, pod("a", "10.0.0.1"))
        assert list(state.workloads) == ["Kubernetes//Pod/ns/a"]
        assert endpoints(state, DB) == {"10.0.0.1": {80: 8080}}

    def test_two_endpoints_of_one_address_are_two_workloads(self) -> None:
        doubled = [{"address": "db.example", "ports": {"tcp-web": port}} for port in (1, 2)]
        state = load(entry(hosts=["db.example"], resolution="DNS", endpoints=doubled))
        assert sorted(dict(one.ports)[80] for one in state.endpoints(DB)) == [1, 2]

    def test_export_to_and_identities(self) -> None:
        spiffe = "spiffe://cluster.local/ns/ns/sa/db"
        state = load(
            entry(hosts=["db.example"], exportTo=["."], subjectAltNames=[spiffe, "db.example"]), clean=False
        )
        found = only(state)
        assert found.visible_only_in_namespace
        assert found.subject_alt_names == (SpiffeId("cluster.local", "ns", "db"),)
        assert [(one.severity, one.path) for one in state.problems] == [
            ("warning", "spec.subjectAltNames[1]")
        ]

    def test_a_service_of_the_cluster_is_not_replaced_by_an_entry(self) -> None:
        impostor = entry(hosts=[ECHO[1]], resolution="STATIC", endpoints=[{"address": "10.66.0.1"}])
        state = load(service(selector={"app": "echo"}), pod("a", "10.0.0.1"), impostor)
        assert list(endpoints(state)) == ["10.0.0.1"]

    @pytest.mark.parametrize(
        ("spec", "path"),
        [
            ({"hosts": ["a b"]}, "spec.hosts[0]"),
            ({"hosts": ["db.example"], "addresses": ["10.0.0.0/99"]}, "spec.addresses[0]"),
            ({"hosts": []}, "spec.hosts"),
            ({"hosts": ["db.example"], "resolution": "MAGIC"}, "spec.resolution"),
            ({"hosts": ["db.example"], "ports": [{"number": 0, "name": "x"}]}, "spec.ports[0].number"),
            ({"hosts": ["db.example"], "endpoint": []}, "spec.endpoint"),
        ],
    )
    def test_errors_have_their_place(self, spec: dict[str, Any], path: str) -> None:
        assert path in [one.path for one in load(entry(**spec), clean=False).problems]
