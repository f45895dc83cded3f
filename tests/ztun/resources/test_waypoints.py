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


def canary(weight: str | None, name: str = "wp2", **labels: str) -> dict[str, Any]:
    """Metadata that shares a service between the waypoint wp and another one."""
    annotations = {} if weight is None else {"istio.io/use-waypoint-canary-weight": weight}
    named = {"istio.io/use-waypoint": "wp", "istio.io/use-waypoint-canary": name, **labels}
    return {"labels": named, "annotations": annotations}


def second(**values: Any) -> dict[str, Any]:
    """The waypoint wp2."""
    other = waypoint(**values)
    other["metadata"]["name"] = "wp2"
    return other


def shares(*objects: dict[str, Any], problems: int = 0) -> dict[str, int]:
    """The weights of the waypoints of the service, by name and namespace."""
    state = load(*objects)
    assert len(state.problems) == problems, state.problems
    return {
        ".".join(str(share.gateway.destination[1]).split(".")[:2]): share.weight
        for share in state.services[ECHO].weighted_waypoints
    }


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


def shared_service(metadata: dict[str, Any]) -> dict[str, Any]:
    one = service()
    one["metadata"] |= metadata
    return one


@pytest.mark.parametrize(
    ("weight", "expected"),
    [("5", (95, 5)), ("100", (0, 100)), ("0", (100, 0)), (None, (100, 0)), ("007", (93, 7))],
)
def test_a_canary_waypoint_has_a_share_of_the_connections(
    weight: str | None, expected: tuple[int, int]
) -> None:
    found = shares(waypoint(), second(), shared_service(canary(weight)))
    assert found == dict(zip(("wp.ns", "wp2.ns"), expected, strict=True))


def test_a_canary_of_another_namespace_needs_leave() -> None:
    here = shared_service(canary("10", **{"istio.io/use-waypoint-canary-namespace": "infra"}))
    open_to_all = second(namespace="infra", allowedRoutes={"namespaces": {"from": "All"}})
    assert shares(waypoint(), open_to_all, here) == {"wp.ns": 90, "wp2.infra": 10}
    assert shares(waypoint(), second(namespace="infra"), here, problems=1) == {}


def test_a_canary_of_the_namespace_counts_with_the_waypoint_of_the_namespace() -> None:
    around = make("Namespace", "ns", metadata={"name": "ns", "labels": {}} | canary("10"))
    assert shares(waypoint(), second(), around, service()) == {"wp.ns": 90, "wp2.ns": 10}
    assert shares(waypoint(), second(), around, service(use("wp"))) == {}
    assert shares(waypoint(), second(), around, service(use("none"))) == {}


@pytest.mark.parametrize(
    ("other", "metadata", "said"),
    [
        (second(), canary("101"), "has the weight '101'"),
        (second(), canary("-1"), "has the weight '-1'"),
        (second(), canary("5%"), "has the weight '5%'"),
        (second(), canary("\u0665"), "has the weight"),
        (second(), canary("5", "wp"), "is the waypoint itself"),
        (second(), canary("5", "nobody"), "is unknown"),
        (second(purpose="workload"), canary("5"), "serves workload traffic only"),
    ],
)
def test_an_unusable_canary_is_reported_and_the_waypoint_serves_alone(
    other: dict[str, Any], metadata: dict[str, Any], said: str
) -> None:
    state = load(waypoint(), other, shared_service(metadata))
    assert state.services[ECHO].waypoint == GatewayAddress(KEY)
    assert state.services[ECHO].weighted_waypoints == ()
    (problem,) = state.problems
    assert (problem.severity, problem.code) == ("warning", "WAYPOINT")
    assert said in str(problem)
    assert str(problem).startswith("mesh.yaml:")


def test_a_canary_without_a_waypoint_is_reported() -> None:
    labels = {"istio.io/use-waypoint-canary": "wp2"}
    state = load(second(), shared_service({"labels": labels}))
    assert state.services[ECHO].waypoints == ()
    assert "has no effect without istio.io/use-waypoint" in str(state.problems[0])


def test_a_canary_of_a_service_entry() -> None:
    entry = make(
        "ServiceEntry",
        "api",
        api="networking.istio.io/v1",
        metadata=canary("20"),
        spec={"hosts": ["api.example"], "ports": [{"number": 80, "name": "tcp", "protocol": "TCP"}]},
    )
    found = load(waypoint(), second(), entry).services["ns", "api.example"]
    assert [share.weight for share in found.weighted_waypoints] == [80, 20]


def test_gateways_of_other_classes_are_not_waypoints_and_all_are_kept_for_routing() -> None:
    other = waypoint()
    other["spec"]["gatewayClassName"] = "istio"
    state = load(other)
    assert not state.services
    assert [document.kind for document in state.documents] == ["Gateway"]
