"""Gateways: listeners, TLS by server name, Gateway API objects, AUTO_PASSTHROUGH."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.router import TableRouter
from waypoint.engines.sidecar import SidecarEngine
from waypoint.routes.gateway_api import GATEWAY_NAME_LABEL
from ztun.mesh.document import Document
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Action, Connection, Decision, Hop, HopKind

pytestmark = pytest.mark.unit

GATEWAY = Hop(HopKind.GATEWAY, "default", labels={"istio": "gw"})
SERVICES = [
    {
        "hostname": f"{name}.default.svc.cluster.local",
        "namespace": "default",
        "vips": [f"10.0.0.{number}"],
        "ports": [{"name": "p", "number": 80, "target_port": 8080, "protocol": "TCP"}],
        "endpoints": [{"ip": f"10.9.0.{number}", "namespace": "default"}],
    }
    for number, name in enumerate(("a", "b"), 1)
]


def gateway(name: str, *servers: str) -> str:
    return (
        f"apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: default}}\n"
        f"spec: {{selector: {{istio: gw}}, servers: [{', '.join(servers)}]}}\n"
    )


def virtual_service(name: str, spec: str) -> str:
    return (
        f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\n"
        f"spec: {spec}\n"
    )


def server(port: int, protocol: str, hosts: str = "'*'", more: str = "") -> str:
    return f"{{port: {{number: {port}, name: p{port}, protocol: {protocol}}}, hosts: [{hosts}]{more}}}"


@pytest.fixture
def route(
    make_documents: Callable[..., list[Document]], make_snapshot: Callable[..., Snapshot]
) -> Callable[..., TableRouter]:
    def make(*texts: str, engine: Any = SidecarEngine) -> TableRouter:
        documents = make_documents([one for text in texts for one in yaml.safe_load_all(text)])
        router: TableRouter = engine().router(make_snapshot(SERVICES, documents))
        return router

    return make


def decide(router: TableRouter, port: int, name: str = "", hop: Hop = GATEWAY) -> Decision:
    return router.decide(Connection("", port, server_name=name), hop, random.Random(1))


def target(decision: Decision) -> str:
    return decision.chosen.host.partition(".")[0] if decision.chosen else decision.action.value


SIMPLE = ", tls: {mode: SIMPLE, credentialName: c}"
PASSTHROUGH = ", tls: {mode: PASSTHROUGH}"


@pytest.mark.parametrize("engine", [SidecarEngine, AmbientEngine])
def test_a_terminating_server_is_chosen_by_its_hosts(route: Callable[..., TableRouter], engine: Any) -> None:
    router = route(
        gateway("g", server(443, "TLS", "a.x.com", SIMPLE), server(443, "TLS", "'*.x.com'", SIMPLE)),
        virtual_service("a", "{hosts: [a.x.com], gateways: [g], tcp: [{route: [{destination: {host: a}}]}]}"),
        virtual_service("b", "{hosts: [b.x.com], gateways: [g], tcp: [{route: [{destination: {host: b}}]}]}"),
        engine=engine,
    )
    assert target(decide(router, 443, "a.x.com")) == "a"
    assert (
        target(decide(router, 443, "b.x.com")) == "a"
    )  # of the wildcard server: the first with a rule owns it
    assert decide(router, 443, "y.com").action is Action.REJECT
    assert router.wants_server_name(Connection("", 443), GATEWAY)


@pytest.mark.parametrize("engine", [SidecarEngine, AmbientEngine])
def test_passthrough_goes_by_server_name(route: Callable[..., TableRouter], engine: Any) -> None:
    tls = "[{match: [{sniHosts: [a.x.com]}], route: [{destination: {host: a, port: {number: 80}}}]}]"
    router = route(
        gateway("g", server(443, "TLS", "'*'", PASSTHROUGH)),
        virtual_service("a", f"{{hosts: [a.x.com], gateways: [g], tls: {tls}}}"),
        engine=engine,
    )
    assert target(decide(router, 443, "A.X.com")) == "a"
    closed = decide(router, 443, "b.x.com")
    assert closed.action is Action.REJECT
    assert "a.x.com" in closed.diagnostics[-1].hint


def test_https_that_is_terminated_is_for_the_http_layer(route: Callable[..., TableRouter]) -> None:
    router = route(gateway("g", server(443, "HTTPS", "'*'", SIMPLE)))
    found = decide(router, 443, "a.x.com")
    assert found.action is Action.HTTP_LAYER
    assert found.refused


def test_auto_passthrough_takes_the_destination_from_the_server_name(
    route: Callable[..., TableRouter],
) -> None:
    router = route(gateway("g", server(15443, "TLS", "'*'", ", tls: {mode: AUTO_PASSTHROUGH}")))
    assert target(decide(router, 15443, "outbound_.80_._.b.default.svc.cluster.local")) == "b"
    assert decide(router, 15443, "outbound_.80_._.none.default.svc.cluster.local").action is Action.REJECT
    for name in ("b", "outbound_.x_._.b", "outbound_.999999_._.b", ""):
        assert decide(router, 15443, name).action is Action.REJECT


def test_listeners_say_what_to_open(route: Callable[..., TableRouter]) -> None:
    router = route(
        gateway("g", server(90, "TCP"), server(91, "TCP"), server(443, "TLS", "'*'", PASSTHROUGH)),
        virtual_service(
            "v",
            "{hosts: ['*'], gateways: [g], tcp: [{match: [{port: 90}], route: [{destination: {host: a}}]}]}",
        ),
    )
    opened = {port: one.opened for (_, port), one in router.listeners(GATEWAY).items()}
    assert opened == {90: True, 91: False, 443: False}
    assert router.listeners(Hop(HopKind.GATEWAY, "default", labels={"istio": "other"})) == {}
    assert target(decide(router, 90)) == "a"
    assert not router.wants_server_name(Connection("", 90), GATEWAY)


API = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: default}
spec:
  gatewayClassName: istio
  listeners:
  - {name: t, port: 90, protocol: TCP}
  - {name: s, port: 443, protocol: TLS, hostname: '*.x.com', tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: r, namespace: default}
spec:
  parentRefs: [{name: g}]
  rules: [{backendRefs: [{name: a, port: 80}, {name: b, port: 80, weight: 0}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: r, namespace: default}
spec:
  parentRefs: [{name: g, sectionName: s}]
  hostnames: [b.x.com, c.y.com]
  rules: [{backendRefs: [{name: b, port: 80}]}]
"""


@pytest.mark.parametrize("engine", [SidecarEngine, AmbientEngine])
def test_gateway_api_listeners_are_for_the_gateways_own_pods(
    route: Callable[..., TableRouter], engine: Any
) -> None:
    router = route(API, engine=engine)
    own = Hop(HopKind.GATEWAY, "default", labels={GATEWAY_NAME_LABEL: "g"})
    assert target(decide(router, 90, hop=own)) == "a"
    assert target(decide(router, 443, "b.x.com", own)) == "b"
    assert decide(router, 443, "c.y.com", own).action is Action.REJECT
    foreign = Hop(HopKind.GATEWAY, "other", labels={GATEWAY_NAME_LABEL: "g"})
    assert decide(router, 90, hop=foreign).action is Action.NO_LISTENER


def test_a_grant_permits_a_backend_elsewhere(route: Callable[..., TableRouter]) -> None:
    grant = """
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: default}
spec:
  from: [{group: gateway.networking.k8s.io, kind: TCPRoute, namespace: team}]
  to: [{group: '', kind: Service}]
"""
    objects = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: team}
spec: {gatewayClassName: istio, listeners: [{name: t, port: 90, protocol: TCP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: r, namespace: team}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, namespace: default, port: 80}]}]}
"""
    own = Hop(HopKind.GATEWAY, "team", labels={GATEWAY_NAME_LABEL: "g"})
    assert decide(route(objects), 90, hop=own).action is Action.REJECT
    assert target(decide(route(objects, grant), 90, hop=own)) == "a"


ODD = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: default}
spec: {gatewayClassName: istio, listeners: [{name: s, port: 443, protocol: TLS, hostname: a.x.com}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: r, namespace: default}
spec: {parentRefs: [{name: g}], hostnames: [b.x.com], rules: [{backendRefs: [{kind: Bucket, name: a, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: r, namespace: default}
spec:
  parentRefs: [{kind: Mesh, name: g}, {name: none}, {group: '', kind: Service, name: a}]
  rules: [{backendRefs: [{kind: Bucket, name: a, port: 80}, {name: a, port: 80}]}]
"""


def test_what_is_wrong_with_a_route_is_said(route: Callable[..., TableRouter]) -> None:
    router = route(ODD)
    codes = {one.code for one in router.diagnostics()}
    assert {"GAPI-NO-MATCHING-HOSTNAME", "GAPI-KIND-NOT-ALLOWED", "GAPI-INVALID-KIND", "IST0101"} <= codes
    found = router.decide(
        Connection("10.0.0.1", 80, source_namespace="default"),
        Hop(HopKind.CLIENT, "default"),
        random.Random(1),
    )
    assert [(one.host, one.status.value, float(one.share)) for one in found.destinations] == [
        ("", "not_permitted", 0.5),
        ("a.default.svc.cluster.local", "ok", 0.5),
    ]


def test_a_wildcard_bind_is_no_bind(route: Callable[..., TableRouter]) -> None:
    router = route(
        gateway("g", server(90, "TCP", more=", bind: 0.0.0.0")),
        gateway("h", server(90, "TCP")),
        virtual_service("v", "{hosts: ['*'], gateways: [g], tcp: [{route: [{destination: {host: a}}]}]}"),
    )
    found = decide(router, 90)
    assert target(found) == "a"
    assert "GW-CONFLICT" in {one.code for one in found.diagnostics}
