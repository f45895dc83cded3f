"""What a waypoint serves: services and workloads that name it, at ports that they have. Nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypoint.server.instance import WaypointName, own_pod
from waypoint.server.policies import policies_for
from waypoint.server.target import Target, find_target
from ztun.errors import ConfigError
from ztun.mesh.inbound import InboundRefused
from ztun.mesh.model import (
    Authorization,
    GatewayAddress,
    PolicyAction,
    PolicyScope,
    Service,
    ServicePort,
    Vip,
    WeightedWaypoint,
    Workload,
)
from ztun.mesh.snapshot import Snapshot, build_snapshot

pytestmark = pytest.mark.unit

WAYPOINT = GatewayAddress(("default", "waypoint.default.svc.cluster.local"))
OTHER = GatewayAddress(("default", "other.default.svc.cluster.local"))
NAME = WaypointName("default", "waypoint")


def service(
    name: str, vip: str, waypoint: GatewayAddress | None = None, *, namespace: str = "default"
) -> Service:
    hostname = name if "." in name else f"{name}.{namespace}.svc.cluster.local"
    return Service(
        name,
        namespace,
        hostname,
        vips=(Vip("", vip),) if vip else (),
        ports={19000: ServicePort(19000, 9000)},
        waypoint=waypoint,
    )


def instance(name: str, ip: str, of: str = "waypoint", **more: str) -> Workload:
    return Workload(
        f"Kubernetes//Pod/default/{name}",
        name,
        "default",
        (ip,),
        services={("default", f"{of}.default.svc.cluster.local"): {15008: 15008}},
        native_tunnel=True,
        **more,  # type: ignore[arg-type]
    )


POD = instance("waypoint-1", "10.0.8.8")
SERVICES = [
    service("waypoint", "10.96.0.1"),
    service("other", "10.96.0.2"),
    service("echo", "192.168.58.10", WAYPOINT),
    service("plain", "192.168.58.11"),
    service("theirs", "192.168.58.12", OTHER),
    service("nameless", "", WAYPOINT),
    service("*.wild.example", "", WAYPOINT),
    service("api.example", "192.168.58.13", OTHER, namespace="foo"),
    service("api.example", "192.168.58.14", WAYPOINT, namespace="default"),
    service("shared-theirs", "192.168.58.15", OTHER, namespace="default"),
    service("shared-ours", "192.168.58.15", WAYPOINT, namespace="foo"),
]
WORKLOADS = [
    POD,
    instance("other-1", "10.0.8.9", "other"),
    Workload("Kubernetes//Pod/default/behind", "behind", "default", ("10.0.1.1",), waypoint=WAYPOINT),
    Workload("Kubernetes//Pod/default/free", "free", "default", ("10.0.1.2",)),
    Workload("Kubernetes//Pod/default/theirs", "theirs", "default", ("10.0.1.3",), waypoint=OTHER),
]


CANARY = dataclasses.replace(
    service("canary-here", "192.168.58.16", OTHER),
    weighted_waypoints=(WeightedWaypoint(OTHER, 100), WeightedWaypoint(WAYPOINT, 0)),
)


@pytest.mark.parametrize("authority", ["192.168.58.16:19000", "canary-here.default.svc.cluster.local:19000"])
def test_canary_waypoint_serves_whatever_its_weight(authority: str) -> None:
    """A connection that was drawn for it before the weight fell to 0 must not be refused."""
    state = build_snapshot(workloads=WORKLOADS, services=[*SERVICES, CANARY], policies=())
    assert find_target(state, POD, authority).service == CANARY


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return build_snapshot(workloads=WORKLOADS, services=SERVICES, policies=())


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("192.168.58.10:19000", "echo"),
        ("echo.default.svc.cluster.local:19000", "echo"),
        ("ECHO.default.svc.cluster.local:19000", "echo"),
        ("nameless.default.svc.cluster.local:19000", "nameless"),
        ("api.example:19000", "api.example"),
    ],
)
def test_services_behind_it_are_served_by_address_and_by_name(
    snapshot: Snapshot, authority: str, name: str
) -> None:
    target = find_target(snapshot, POD, authority)
    assert target.service is not None
    assert target.service.name == name
    assert target.service.waypoint == WAYPOINT
    assert target.workload is None
    assert target.port == 19000
    assert bool(target.ip) is not bool(target.host)


def test_workloads_behind_it_are_served_at_any_port(snapshot: Snapshot) -> None:
    for port in (1, 9000, 65535):
        target = find_target(snapshot, POD, f"10.0.1.1:{port}")
        assert target == Target(port, "10.0.1.1", workload=WORKLOADS[2])


@pytest.mark.parametrize(
    ("authority", "code", "status"),
    [
        ("192.168.58.11:19000", "not_served", 404),
        ("192.168.58.12:19000", "not_served", 404),
        ("plain.default.svc.cluster.local:19000", "not_served", 404),
        ("theirs.default.svc.cluster.local:19000", "not_served", 404),
        ("10.96.0.1:15008", "not_served", 404),
        ("10.0.8.8:15008", "not_served", 404),
        ("10.0.1.2:9000", "not_served", 404),
        ("10.0.1.3:9000", "not_served", 404),
        ("10.0.1.1:15008", "not_served", 404),
        ("10.0.1.1:15001", "not_served", 404),
        ("127.0.0.1:15000", "not_served", 404),
        ("169.254.169.254:80", "not_served", 404),
        ("8.8.8.8:53", "not_served", 404),
        ("a.wild.example:19000", "not_served", 404),
        ("example.com:443", "not_served", 404),
        ("192.168.58.10:9000", "no_port", 404),
        ("echo.default.svc.cluster.local:80", "no_port", 404),
        ("192.168.58.10", "bad_authority", 400),
        ("192.168.58.10:0", "bad_authority", 400),
        ("user@192.168.58.10:19000", "bad_authority", 400),
        ("*.wild.example:19000", "bad_authority", 400),
    ],
)
def test_everything_else_is_refused(snapshot: Snapshot, authority: str, code: str, status: int) -> None:
    with pytest.raises(InboundRefused) as refused:
        find_target(snapshot, POD, authority)
    assert (refused.value.code, refused.value.status) == (code, status)
    assert refused.value.hint


@given(st.text(max_size=60) | st.from_regex(r"\A[0-9a-z.:\[\]]{1,40}:[0-9]{1,5}\Z"))
def test_whatever_is_asked_for_is_served_by_us_or_refused(authority: str) -> None:
    mesh = build_snapshot(workloads=WORKLOADS, services=SERVICES, policies=())
    try:
        target = find_target(mesh, POD, authority)
    except InboundRefused:
        return
    served = target.service or target.workload
    assert served is not None
    assert served.waypoint == WAYPOINT


def test_an_address_that_services_share_is_what_the_client_means_by_it(snapshot: Snapshot) -> None:
    target = find_target(snapshot, POD, "192.168.58.15:19000", client_namespace="foo")
    assert target.service is not None
    assert target.service.name == "shared-ours"


def test_an_instance_of_another_waypoint_serves_what_names_that(snapshot: Snapshot) -> None:
    other = WORKLOADS[1]
    assert find_target(snapshot, other, "192.168.58.12:19000").service == SERVICES[4]
    with pytest.raises(InboundRefused):
        find_target(snapshot, other, "192.168.58.10:19000")


def test_a_waypoint_that_nobody_knows_serves_nothing() -> None:
    mesh = build_snapshot(workloads=[POD], services=[service("echo", "192.168.58.10", WAYPOINT)], policies=())
    with pytest.raises(InboundRefused):
        find_target(mesh, POD, "192.168.58.10:19000")


# -- which pod this process is -------------------------------------------------------------------------------


def mesh_of(*pods: Workload) -> Snapshot:
    return build_snapshot(workloads=pods, services=SERVICES, policies=())


def test_the_only_pod_needs_no_name() -> None:
    assert own_pod(mesh_of(POD), NAME) is POD
    assert own_pod(mesh_of(POD), NAME, "default/waypoint-1") is POD


def test_one_of_several_pods_must_be_named() -> None:
    second = instance("waypoint-2", "10.0.8.10")
    mesh = mesh_of(POD, second)
    assert own_pod(mesh, NAME, "default/waypoint-2") is second
    with pytest.raises(ConfigError, match="default/waypoint-1, default/waypoint-2") as error:
        own_pod(mesh, NAME)
    assert "--workload" in error.value.hint


def test_a_pod_that_is_not_there_is_waited_for() -> None:
    assert own_pod(mesh_of(), NAME) is None
    assert own_pod(mesh_of(POD), NAME, "default/waypoint-7") is None
    assert own_pod(mesh_of(instance("other-1", "10.0.8.9", "other")), NAME) is None


# -- policies ------------------------------------------------------------------------------------------------


def attached(name: str, namespace: str, *refs: tuple[str, str, str]) -> Authorization:
    return Authorization(name, namespace, PolicyScope.NAMESPACE, PolicyAction.DENY, (), target_refs=refs)


GATEWAY_API = "gateway.networking.k8s.io"
POLICIES = [
    attached("to-waypoint", "default", (GATEWAY_API, "Gateway", "waypoint")),
    attached("to-other-waypoint", "default", (GATEWAY_API, "Gateway", "other")),
    attached("to-namesake", "foo", (GATEWAY_API, "Gateway", "waypoint")),
    attached("to-class", "istio-system", (GATEWAY_API, "GatewayClass", "istio-waypoint")),
    attached("to-class-elsewhere", "default", (GATEWAY_API, "GatewayClass", "istio-waypoint")),
    attached("to-echo", "default", ("", "Service", "echo")),
    attached("to-plain", "default", ("", "Service", "plain")),
    attached("to-entry", "default", ("networking.istio.io", "ServiceEntry", "echo")),
    attached("twice", "default", ("", "Service", "echo"), (GATEWAY_API, "Gateway", "waypoint")),
    Authorization("selects", "default", PolicyScope.NAMESPACE, PolicyAction.DENY, ()),
    Authorization("mesh-wide", "istio-system", PolicyScope.GLOBAL, PolicyAction.DENY, ()),
]


def names(target: Target) -> set[str]:
    mesh = build_snapshot(workloads=WORKLOADS, services=SERVICES, policies=POLICIES)
    found = policies_for(mesh, NAME, target)
    assert len({policy.key for policy in found}) == len(found)
    return {policy.name for policy in found}


def test_policies_attached_to_the_waypoint_its_class_and_the_service_apply() -> None:
    everything = {"to-waypoint", "to-class", "to-echo", "to-entry", "twice"}
    assert names(Target(19000, "192.168.58.10", service=SERVICES[2])) == everything


def test_policies_of_services_do_not_apply_to_workloads() -> None:
    assert names(Target(9000, "10.0.1.1", workload=WORKLOADS[2])) == {"to-waypoint", "to-class", "twice"}


def test_a_service_of_the_same_name_elsewhere_has_policies_of_its_own() -> None:
    namesake = dataclasses.replace(SERVICES[2], namespace="foo")
    assert names(Target(19000, service=namesake)) == {"to-waypoint", "to-class", "twice"}
