"""Where a gateway listens, from its Gateway objects and its own pod; and which pod that is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from tests.waypoint.conftest import documents_of
from tests.waypoint.gateway.edge import gateway, rules, server, to
from waypoint.engines.ambient import AmbientEngine
from waypoint.gateway.places import Plan, plan_places, pod_port
from waypoint.gateway.view import Name
from waypoint.routes.gateway_api import GATEWAY_NAME_LABEL
from ztun.mesh.model import NamespacedName, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot

pytestmark = pytest.mark.unit

NAME = Name("istio-system", "ingress", {})
OWN = ("10.0.0.1", "fd00::1")
SERVICE: NamespacedName = ("istio-system", "ingress.istio-system.svc.cluster.local")


def pod(name: str = "ingress-1", **more: Any) -> Workload:
    fields: dict[str, Any] = {
        "uid": name,
        "name": name,
        "namespace": "istio-system",
        "addresses": OWN,
        "workload_name": "ingress",
        "labels": MappingProxyType({"istio": "ingress"}),
    }
    return Workload(**{**fields, **more})


def snapshot(*pods: Workload, documents: list[Mapping[str, Any]] | None = None) -> Snapshot:
    return build_snapshot(workloads=pods, services=(), policies=(), documents=documents_of(documents or []))


def plan(*servers: Mapping[str, Any], own: Workload | None = None) -> Plan:
    own = own or pod()
    documents = [
        gateway("ingress", *servers),
        rules("all", ["ingress"], tcp=[{"route": [to("echo")]}]),
    ]
    router = AmbientEngine().router(snapshot(own, documents=documents))
    return plan_places(router.listeners(NAME.hop(own)), own)


def codes(found: Plan) -> list[str]:
    return [one.code for one in found.left_out]


def test_a_server_is_on_all_addresses_of_the_pod() -> None:
    found = plan(server(19000))
    assert set(found.places) == {(ip, 19000) for ip in OWN}
    assert found.places[OWN[0], 19000].declared(OWN[0]) == (OWN[0], 19000)
    assert not found.left_out


def test_a_bound_server_is_on_its_address_only() -> None:
    found = plan(server(19000, bind="10.0.0.9"))
    assert set(found.places) == {("10.0.0.9", 19000)}
    assert found.places["10.0.0.9", 19000].declared("10.0.0.9") == ("10.0.0.9", 19000)


def test_a_bound_server_comes_before_one_for_all_addresses() -> None:
    everywhere, somewhere = server(19000), server(19000, bind=OWN[0])
    somewhere["port"]["name"] = "somewhere"
    found = plan(everywhere, somewhere)
    assert {ip: found.places[ip, 19000].opened.listener.bind for ip in OWN} == {OWN[0]: OWN[0], OWN[1]: ""}
    assert not found.left_out


def test_ports_are_those_of_the_pod_behind_its_service() -> None:
    own = pod(services=MappingProxyType({SERVICE: {80: 8080}}))
    found = plan(server(80), server(81), own=own)
    assert {port for _, port in found.places} == {8080, 81}
    assert found.places[OWN[0], 8080].declared(OWN[0]) == (OWN[0], 80)


def test_of_several_services_the_first_by_name_says_the_port() -> None:
    services = {("b", "b"): {80: 9090}, ("a", "a"): {80: 8080, 81: 8081}}
    assert pod_port(pod(services=MappingProxyType(services)), 80) == 8080


def test_two_ports_that_become_one_are_reported() -> None:
    own = pod(services=MappingProxyType({SERVICE: {80: 8080}}))
    found = plan(server(80), server(8080), own=own)
    assert codes(found) == ["GW-TARGETPORT-TAKEN"] * 2
    assert found.places[OWN[0], 8080].opened.listener.port == 80


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (server(80, "HTTP"), "GW-HTTP"),
        (server(443, "TLS", tls={"mode": "PASSTHROUGH"}), "GW-NO-ROUTE"),
        (server(19000, bind="unix:///run/echo"), "GW-BIND"),
        (server(19000, bind="everywhere"), "GW-BIND"),
        (server(0), "GW-PORT-NUMBER"),
        (server(70000), "GW-PORT-NUMBER"),
    ],
)
def test_what_cannot_be_opened_is_reported_and_disturbs_nobody(wanted: dict[str, Any], code: str) -> None:
    found = plan(server(19001), wanted)
    assert codes(found) == [code]
    assert found.left_out[0].path == ("spec", "servers", 1)
    assert {port for _, port in found.places} == {19001}


def test_the_gateway_is_its_pod_or_the_first_of_its_deployment() -> None:
    one, two, other = pod("ingress-1"), pod("ingress-2"), pod("ingress", namespace="other")
    assert NAME.workload(snapshot(two, one, other)) == one
    assert Name("istio-system", "ingress-2", {}).workload(snapshot(one, two)) == two
    assert NAME.workload(snapshot(other)) is None


def test_labels_of_the_pod_are_added_to_and_replaced() -> None:
    hop = Name("istio-system", "ingress", {"istio": "edge", "team": "a"}).hop(pod())
    assert hop.labels == {GATEWAY_NAME_LABEL: "ingress", "istio": "edge", "team": "a"}
