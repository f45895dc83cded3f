"""Labels to waypoints: which counts, who may, and that a missing one refuses."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ztun.mesh.gateway import is_gateway_instance
from ztun.mesh.model import ApplicationTunnel, AppTunnelProtocol, GatewayAddress, TunnelProtocol
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit

KEY = ("ns", "wp.ns.svc.cluster.local")
ECHO = ("ns", "echo.ns.svc.cluster.local")


def load(*objects: dict[str, Any]) -> Snapshot:
    documents, problems = parse_documents(yaml.safe_dump_all(objects), file="mesh.yaml")
    assert problems == []
    return translate(documents, settings=MeshSettings()).snapshot


def make(
    kind: str, name: str, labels: dict[str, str] | None = None, *, api: str = "v1", **rest: Any
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "labels": labels or {}} | rest.pop("metadata", {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata} | rest


def waypoint(
    purpose: str = "", *, namespace: str = "ns", binding: str = "", **listener: Any
) -> dict[str, Any]:
    annotations = {"ambient.istio.io/waypoint-inbound-binding": binding} if binding else {}
    return make(
        "Gateway",
        "wp",
        {"istio.io/waypoint-for": purpose} if purpose else {},
        api="gateway.networking.k8s.io/v1",
        metadata={"namespace": namespace, "annotations": annotations},
        spec={
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"} | listener],
        },
    )


def instance(ip: str = "10.0.0.9", label: str = "gateway.networking.k8s.io/gateway-name") -> dict[str, Any]:
    return make("Pod", "wp-1", {label: "wp"}, status={"podIP": ip}, spec={"serviceAccountName": "wp"})


def use(name: str, namespace: str = "") -> dict[str, str]:
    return {"istio.io/use-waypoint": name} | (
        {"istio.io/use-waypoint-namespace": namespace} if namespace else {}
    )


def service(labels: dict[str, str] | None = None) -> dict[str, Any]:
    return make("Service", "echo", labels, spec={"clusterIP": "10.10.0.1", "ports": [{"port": 80}]})


def pod(labels: dict[str, str] | None = None) -> dict[str, Any]:
    return make("Pod", "echo", labels, status={"podIP": "10.0.0.1"})


def waypoint_of_service(*objects: dict[str, Any]) -> GatewayAddress | None:
    return load(*objects).services[ECHO].waypoint


@pytest.mark.parametrize("label", ["gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name"])
def test_instances_are_found_without_a_service_document(label: str) -> None:
    state = load(waypoint(), instance(label=label))
    (endpoint,) = state.endpoints(KEY)
    assert dict(endpoint.ports) == {15008: 15008}
    found = endpoint.workload
    assert (found.tunnel_protocol, found.native_tunnel, found.waypoint) == (TunnelProtocol.HBONE, True, None)
    assert is_gateway_instance(state, GatewayAddress(KEY), found)


def test_a_service_document_of_the_waypoint_keeps_its_address() -> None:
    own = make("Service", "wp", use("wp"), spec={"clusterIP": "10.10.0.9", "ports": [{"port": 15021}]})
    state = load(waypoint(), instance(), own)
    assert sorted(state.services[KEY].ports) == [15008, 15021]
    assert state.services[KEY].vips[0].ip == "10.10.0.9"
    assert state.services[KEY].waypoint is None


def test_the_label_of_the_service_counts_before_that_of_the_namespace() -> None:
    labelled = make("Namespace", "ns", use("wp"))
    assert waypoint_of_service(waypoint(), labelled, service()) == GatewayAddress(KEY)
    assert waypoint_of_service(waypoint(), labelled, service(use("none"))) is None
    assert (
        waypoint_of_service(waypoint(), make("Namespace", "ns", use("none")), service(use("wp"))) is not None
    )
    assert waypoint_of_service(waypoint(), service()) is None


@pytest.mark.parametrize(
    ("purpose", "for_service", "for_pod"),
    [
        ("", True, False),
        ("service", True, False),
        ("workload", False, True),
        ("all", True, True),
        ("none", False, False),
    ],
)
def test_what_a_waypoint_is_for(purpose: str, for_service: bool, for_pod: bool) -> None:
    state = load(waypoint(purpose), service(use("wp")), pod(use("wp")))
    assert (state.services[ECHO].waypoint is not None) is for_service
    assert (state.workloads["Kubernetes//Pod/ns/echo"].waypoint is not None) is for_pod
    assert state.problems == ()


@pytest.mark.parametrize(
    ("allowed", "namespace_labels", "may"),
    [
        (None, {}, False),
        ({"namespaces": {"from": "Same"}}, {}, False),
        ({"namespaces": {"from": "All"}}, {}, True),
        ({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"a": "b"}}}}, {"a": "b"}, True),
        ({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"a": "b"}}}}, {}, False),
    ],
)
def test_waypoints_of_other_namespaces(
    allowed: dict[str, Any] | None, namespace_labels: dict[str, str], may: bool
) -> None:
    listener = {"allowedRoutes": allowed} if allowed else {}
    state = load(
        waypoint(namespace="infra", **listener),
        make("Namespace", "ns", namespace_labels),
        service(use("wp", "infra")),
    )
    found = state.services[ECHO].waypoint
    assert found is not None
    assert (found.destination == ("infra", "wp.infra.svc.cluster.local")) is may
    assert bool(state.problems) is not may


def test_an_unknown_waypoint_resolves_to_nothing_and_is_reported_once() -> None:
    own = make("Service", "wp", spec={"clusterIP": "10.10.0.9", "ports": [{"port": 15008}]})
    state = load(make("Namespace", "ns", use("wp")), service(), pod(), own)
    found = state.services[ECHO].waypoint
    assert found is not None
    assert found.destination not in state.services
    assert state.workloads["Kubernetes//Pod/ns/echo"].waypoint == found
    (problem,) = state.problems
    assert str(problem).startswith("mesh.yaml:")
    assert "the waypoint ns/wp is unknown; traffic to what uses it is refused" in str(problem)


@pytest.mark.parametrize(
    ("binding", "tunnel"),
    [
        ("PROXY/15088", ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)),
        ("NONE", ApplicationTunnel(AppTunnelProtocol.NONE, 0)),
        ("NONE/15090", ApplicationTunnel(AppTunnelProtocol.NONE, 15090)),
    ],
)
def test_a_waypoint_behind_the_nodes_proxy(binding: str, tunnel: ApplicationTunnel) -> None:
    found = load(waypoint(binding=binding), instance()).workloads["Kubernetes//Pod/ns/wp-1"]
    assert (found.application_tunnel, found.native_tunnel) == (tunnel, False)


@pytest.mark.parametrize(
    "broken",
    [
        waypoint("everything"),
        waypoint(port=15009),
        waypoint(protocol="TCP"),
        waypoint(binding="PROXY"),
        waypoint(binding="PROXY/0"),
        waypoint(binding="SOCKS/1"),
    ],
)
def test_a_broken_waypoint_refuses(broken: dict[str, Any]) -> None:
    state = load(broken, service(use("wp")))
    found = state.services[ECHO].waypoint
    assert found is not None
    assert found.destination not in state.services
    assert len(state.problems) == 2


def test_gateways_of_other_classes_are_not_waypoints_and_all_are_kept_for_routing() -> None:
    other = waypoint()
    other["spec"]["gatewayClassName"] = "istio"
    state = load(other)
    assert not state.services
    assert [document.kind for document in state.documents] == ["Gateway"]
