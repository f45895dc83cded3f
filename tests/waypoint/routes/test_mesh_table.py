"""The client's side: shared listeners, server names, undeclared ports, headless pods."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from waypoint.engines.sidecar import SidecarEngine
from ztun.mesh.document import Document
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Action, Connection, Decision, Hop, HopKind

pytestmark = pytest.mark.unit

MakeDocuments = Callable[..., list[Document]]
MakeSnapshot = Callable[..., Snapshot]
CLIENT = Hop(HopKind.CLIENT, "default")


def service(name: str, number: int, protocol: str = "TCP", **fields: Any) -> dict[str, Any]:
    return {
        "hostname": f"{name}.default.svc.cluster.local",
        "namespace": "default",
        "vips": [f"10.0.0.{number}"],
        "ports": [{"name": "p", "number": 80, "target_port": 8080, "protocol": protocol}],
        "endpoints": [{"ip": f"10.9.0.{number}", "namespace": "default"}],
        **fields,
    }


def rule(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "vs", "namespace": "default"},
        "spec": spec,
    }


def to(host: str) -> list[dict[str, Any]]:
    return [{"destination": {"host": host}}]


@pytest.fixture
def decide(make_documents: MakeDocuments, make_snapshot: MakeSnapshot) -> Callable[..., Decision]:
    def run(services: list[Any], resources: list[Any], connection: Connection, hop: Hop = CLIENT) -> Decision:
        router = SidecarEngine().router(make_snapshot(services, make_documents(resources)))
        return router.decide(connection, hop, random.Random(1))

    return run


def target(decision: Decision) -> str:
    assert decision.chosen is not None
    return decision.chosen.host.partition(".")[0]


def test_a_rule_of_a_shared_listener_captures_foreign_addresses(decide: Callable[..., Decision]) -> None:
    """A service whose address is a network shares one listener per port, so a rule can reach further than it."""
    wide = service("wide", 1, vips=["10.10.0.0/16"])
    spec = {
        "hosts": ["wide"],
        "tcp": [{"match": [{"destinationSubnets": ["10.20.0.0/16"]}], "route": to("b")}],
    }
    world = [wide, service("b", 2)], [rule(spec)]
    assert target(decide(*world, Connection("10.20.0.1", 80, source_namespace="default"))) == "b"
    assert target(decide(*world, Connection("10.10.0.1", 80, source_namespace="default"))) == "wide"
    assert (
        decide(*world, Connection("10.30.0.1", 80, source_namespace="default")).action is Action.PASSTHROUGH
    )


def test_the_address_is_decided_before_the_server_name(decide: Callable[..., Decision]) -> None:
    spec = {
        "hosts": ["*.x.com"],
        "tls": [
            {"match": [{"sniHosts": ["*.x.com"], "destinationSubnets": ["10.0.0.0/24"]}], "route": to("b")},
            {"match": [{"sniHosts": ["a.x.com"]}], "route": to("c")},
        ],
    }
    world = [service("a", 1, "TLS", hostname="*.x.com"), service("b", 2), service("c", 3)], [rule(spec)]
    connection = Connection("10.0.0.1", 80, source_namespace="default", protocol="tls", server_name="A.x.com")
    assert target(decide(*world, connection)) == "b"


def test_http_on_an_undeclared_port_is_not_for_layer_four(decide: Callable[..., Decision]) -> None:
    world = [service("a", 1, ""), service("b", 2)], [rule({"hosts": ["a"], "tcp": [{"route": to("b")}]})]
    plain = Connection("10.0.0.1", 80, source_namespace="default")
    assert target(decide(*world, plain)) == "b"
    http = Connection("10.0.0.1", 80, source_namespace="default", protocol="http")
    found = decide(*world, http)
    assert found.action is Action.HTTP_LAYER
    assert target(found) == "a"


def test_a_pod_of_a_headless_service_is_reached_itself(decide: Callable[..., Decision]) -> None:
    pods = [{"ip": f"10.9.1.{number}", "namespace": "default"} for number in (1, 2)]
    headless = service("h", 1, vips=[], headless=True, endpoints=pods)
    found = decide([headless], [], Connection("10.9.1.2", 80, source_namespace="default"))
    assert found.action is Action.FALLTHROUGH
    assert found.chosen is not None
    assert [one.ip for one in found.chosen.endpoints] == ["10.9.1.2"]


def test_a_client_hello_is_waited_for_only_where_rules_need_it(
    make_documents: MakeDocuments, make_snapshot: MakeSnapshot
) -> None:
    spec = {
        "hosts": ["t"],
        "tls": [{"match": [{"sniHosts": ["t.default.svc.cluster.local"]}], "route": to("b")}],
    }
    services = [service("t", 1, "TLS"), service("b", 2), service("u", 3, "TLS")]
    router = SidecarEngine().router(make_snapshot(services, make_documents([rule(spec)])))
    waits = {
        number: router.wants_server_name(
            Connection(f"10.0.0.{number}", 80, source_namespace="default"), CLIENT
        )
        for number in (1, 2, 3, 4)
    }
    assert waits == {1: True, 2: False, 3: False, 4: False}


def test_a_udp_port_is_not_ours(decide: Callable[..., Decision]) -> None:
    found = decide([service("a", 1, "UDP")], [], Connection("10.0.0.1", 80, source_namespace="default"))
    assert found.action is Action.PASSTHROUGH


def test_a_null_or_invalid_block_never_widens(decide: Callable[..., Decision]) -> None:
    for match in (
        [None],
        [{"destinationSubnets": ["10.0.0.0/99"]}],
        [{"destinationSubnets": ["10.0.0.0/255.0.0.0"]}],
    ):
        spec = {"hosts": ["a"], "tcp": [{"match": match, "route": to("b")}]}
        world = [service("a", 1), service("b", 2)], [rule(spec)]
        assert target(decide(*world, Connection("10.0.0.1", 80, source_namespace="default"))) == "a"


def test_traffic_policies_reach_the_decision(decide: Callable[..., Decision]) -> None:
    policy = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "d", "namespace": "default"},
        "spec": {"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 3}}}},
    }
    found = decide([service("a", 1)], [policy], Connection("10.0.0.1", 80, source_namespace="default"))
    assert found.chosen is not None
    assert found.chosen.policy.pool.max_connections == 3
