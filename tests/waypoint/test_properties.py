"""Properties of the engines over arbitrary configurations: they never raise, ambient never widens, the sidecar
engine agrees with a naive evaluator, shares add up, and an explanation is the decision itself.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.istio_waypoint import IstioWaypointEngine
from waypoint.engines.sidecar import SidecarEngine
from ztun.mesh.document import Document
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.routing import Action, Connection, Decision, Hop, HopKind

pytestmark = pytest.mark.unit

HOSTS = ("a.default.svc.cluster.local", "b.default.svc.cluster.local", "c.foo.svc.cluster.local")
VIPS = ("10.0.0.1", "10.0.0.2", "10.1.0.3")
NAMESPACES = ("default", "foo", "istio-system")
LABELS = {"app": "x"}
GATEWAY_LABELS = {"istio": "gw"}
PORTS = (80, 81)

RELAXED = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def services() -> list[dict[str, Any]]:
    return [
        {
            "hostname": host,
            "namespace": host.split(".")[1],
            "created": f"2026-01-0{number + 1}T00:00:00Z",
            "vips": [VIPS[number]],
            "ports": [
                {"name": f"tcp-{port}", "number": port, "target_port": port + 8000, "protocol": "TCP"}
                for port in PORTS
            ],
            "endpoints": [
                {
                    "ip": f"10.9.{number}.{index}",
                    "namespace": host.split(".")[1],
                    "labels": {"version": version},
                }
                for index, version in enumerate(("v1", "v2"), 1)
            ],
        }
        for number, host in enumerate(HOSTS)
    ]


subnet_texts = st.sampled_from(
    ["10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.1", "10.0.0.2/31", "0.0.0.0/0", "::/0", "1.1.1.1/48"]
)
gateway_names = st.sampled_from(["mesh", "gw", "./gw", "foo/gw", "default/gw", "other"])
blocks = st.fixed_dictionaries(
    {},
    optional={
        "destinationSubnets": st.lists(subnet_texts, max_size=2),
        "port": st.sampled_from([0, 80, 81, 9000]),
        "sourceLabels": st.sampled_from([{}, {"app": "x"}, {"app": "y"}]),
        "sourceNamespace": st.sampled_from(["", "default", "foo"]),
        "gateways": st.lists(gateway_names, max_size=2),
    },
)
destinations = st.fixed_dictionaries(
    {"host": st.sampled_from([*HOSTS, "a", "b", "nowhere"])},
    optional={
        "port": st.sampled_from([{"number": 80}, {"number": 7}]),
        "subset": st.sampled_from(["v1", "v9"]),
    },
)
routes = st.fixed_dictionaries(
    {"destination": destinations}, optional={"weight": st.integers(min_value=-1, max_value=100)}
)
routes_of_a_rule = st.one_of(st.just([{"destination": {"host": HOSTS[1]}}]), st.lists(routes, max_size=3))
rules = st.fixed_dictionaries(
    {"route": routes_of_a_rule}, optional={"match": st.lists(blocks, min_size=1, max_size=3)}
)
tls_rules = st.fixed_dictionaries(
    {"match": st.lists(blocks.map(lambda block: {**block, "sniHosts": [HOSTS[0]]}), max_size=2)},
    optional={"route": st.lists(routes, max_size=2)},
)
virtual_service_specs = st.fixed_dictionaries(
    {
        "hosts": st.one_of(
            st.just([HOSTS[0]]),
            st.lists(
                st.sampled_from([*HOSTS, "a", "b", "*.default.svc.cluster.local", "*"]),
                min_size=1,
                max_size=2,
            ),
        ),
        "tcp": st.lists(rules, min_size=1, max_size=3),
    },
    optional={
        "gateways": st.one_of(st.just(["mesh"]), st.lists(gateway_names, min_size=1, max_size=2)),
        "exportTo": st.sampled_from([["*"], ["."], ["foo"], ["default", "foo"]]),
        "tls": st.lists(tls_rules, max_size=2),
        "http": st.just([{"route": []}]),
    },
)
destination_rule_specs = st.fixed_dictionaries(
    {"host": st.sampled_from([*HOSTS, "a", "*.default.svc.cluster.local"])},
    optional={
        "subsets": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["v1", "v2", "v9"])},
                optional={"labels": st.sampled_from([{"version": "v1"}, {"version": "v9"}, {}])},
            ),
            max_size=3,
        ),
        "trafficPolicy": st.sampled_from([{}, {"loadBalancer": {"simple": "RANDOM"}}]),
        "exportTo": st.sampled_from([["."], ["*"]]),
    },
)
gateway_specs = st.fixed_dictionaries(
    {
        "selector": st.just(GATEWAY_LABELS),
        "servers": st.lists(
            st.fixed_dictionaries(
                {
                    "port": st.fixed_dictionaries(
                        {
                            "number": st.sampled_from(PORTS),
                            "name": st.just("n"),
                            "protocol": st.sampled_from(["TCP", "TLS", "HTTP", "HTTPS"]),
                        }
                    ),
                    "hosts": st.lists(
                        st.sampled_from(["*", "./*", HOSTS[0], "foo/*"]), min_size=1, max_size=2
                    ),
                },
                optional={
                    "tls": st.sampled_from(
                        [{"mode": "PASSTHROUGH"}, {"mode": "SIMPLE", "credentialName": "c"}]
                    )
                },
            ),
            max_size=2,
        ),
    }
)


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    kinds = {
        "VirtualService": virtual_service_specs,
        "DestinationRule": destination_rule_specs,
        "Gateway": gateway_specs,
    }
    found = []
    for order in range(draw(st.integers(min_value=1, max_value=5))):
        kind = draw(st.sampled_from([*["VirtualService"] * 4, "DestinationRule", "Gateway"]))
        created = draw(st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]))
        name = "gw" if kind == "Gateway" else f"o{order}"
        found.append(
            document(kind, draw(st.sampled_from(NAMESPACES)), name, draw(kinds[kind]), created, order)
        )
    return list({one.key: one for one in found}.values())


def document(kind: str, namespace: str, name: str, spec: Any, created: str = "", order: int = 0) -> Document:
    version = "networking.istio.io/v1"
    data = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return Document(version, kind, namespace, name, data, created=created, order=order)


connections = st.builds(
    Connection,
    destination_ip=st.one_of(st.just(VIPS[0]), st.sampled_from([*VIPS, "10.9.9.9", "fd00::1"])),
    destination_port=st.sampled_from([80, 80, *PORTS, 82]),
    source_namespace=st.sampled_from(["default", "foo", "default", "foo", ""]),
    source_labels=st.sampled_from([{}, LABELS, {"app": "y"}]),
    server_name=st.sampled_from(["", HOSTS[0], "x.y"]),
)
hops = st.one_of(
    st.builds(Hop, st.just(HopKind.CLIENT), st.sampled_from(NAMESPACES)),
    st.builds(Hop, st.just(HopKind.WAYPOINT), st.sampled_from(NAMESPACES)),
    st.builds(Hop, st.just(HopKind.GATEWAY), st.sampled_from(NAMESPACES), labels=st.just(GATEWAY_LABELS)),
)
engines = st.sampled_from([AmbientEngine, SidecarEngine, IstioWaypointEngine])
MakeSnapshot = Callable[..., Snapshot]


@given(documents(), connections, hops, engines, st.integers())
@RELAXED
def test_shares_add_up_and_the_explanation_is_the_decision(
    make_snapshot: MakeSnapshot,
    found: list[Document],
    connection: Connection,
    hop: Hop,
    engine: Any,
    seed: int,
) -> None:
    router = engine().router(make_snapshot(services(), found))
    decision = router.decide(connection, hop, random.Random(seed))
    traced = router.decide(connection, hop, random.Random(seed), trace=True)
    again = router.decide(connection, hop, random.Random(seed))
    router.wants_server_name(connection, hop)
    router.diagnostics()
    if decision.destinations:
        assert sum(one.share for one in decision.destinations) == Fraction(1)
        assert decision.chosen in decision.destinations
        assert all(one.share > 0 for one in decision.destinations)
    assert outcome(decision) == outcome(traced) == outcome(again)


def outcome(decision: Decision) -> tuple[Any, ...]:
    return decision.action, decision.matched, decision.destinations, decision.chosen, decision.diagnostics


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["hosts", "tcp", "tls", "match", "route", "destination", "host", "gateways", "port", "x"]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from(["VirtualService", "DestinationRule", "Gateway", "TCPRoute", "ReferenceGrant"]),
    json_values,
    connections,
    hops,
    engines,
)
@RELAXED
def test_no_configuration_makes_an_engine_raise(
    make_snapshot: MakeSnapshot, kind: str, spec: Any, connection: Connection, hop: Hop, engine: Any
) -> None:
    one = document(kind, "default", "gw", spec)
    api = document(kind, "default", "api", spec)
    api = Document("gateway.networking.k8s.io/v1", kind, "default", "api", api.data)
    router = engine().router(make_snapshot(services(), [one, api]))
    router.decide(connection, hop, random.Random(1))
    for problem in router.problems:
        assert problem.message


@given(documents(), connections, hops)
@RELAXED
def test_ambient_never_widens(
    make_snapshot: MakeSnapshot, found: list[Document], connection: Connection, hop: Hop
) -> None:
    """What ambient routes away from the default, a rule without unsupported attributes explains."""
    decision = (
        AmbientEngine().router(make_snapshot(services(), found)).decide(connection, hop, random.Random(1))
    )
    if decision.matched is None:
        assert decision.action not in (Action.ROUTE,)
        return
    matched = decision.matched
    spec = spec_of(found, matched.virtual_service)
    rule = spec[matched.section][matched.rule]
    if matched.block is None:
        assert not rule.get("match")
        return
    block = rule["match"][matched.block]
    for attribute in ("destinationSubnets", "port", "sourceLabels", "sourceNamespace"):
        assert not block.get(attribute)


def spec_of(found: list[Document], key: str) -> Mapping[str, Any]:
    return next(
        one.data["spec"]
        for one in found
        if one.kind == "VirtualService" and f"{one.namespace}/{one.name}" == key
    )


@given(documents(), connections)
@RELAXED
def test_the_sidecar_engine_agrees_with_a_naive_evaluator(
    make_snapshot: MakeSnapshot, found: list[Document], connection: Connection
) -> None:
    hop = Hop(HopKind.CLIENT, connection.source_namespace)
    decision = (
        SidecarEngine().router(make_snapshot(services(), found)).decide(connection, hop, random.Random(1))
    )
    matched = decision.matched
    actual = (matched.virtual_service, matched.rule, matched.block) if matched else decision.action.value
    assert actual == naive(found, connection)


def naive(found: list[Document], connection: Connection) -> tuple[str, int, int | None] | str:
    """Rules in order for one connection, without tables: what the words of the API mean."""
    number = VIPS.index(connection.destination_ip) if connection.destination_ip in VIPS else None
    if number is None or connection.destination_port not in PORTS:
        return "passthrough"
    host, best = HOSTS[number], None
    for owner in in_naive_order(found, connection.source_namespace):
        spec, namespace = owner.data["spec"], owner.namespace
        if "mesh" not in spec.get("gateways", ["mesh"]):
            continue
        if not any(naive_match(name, namespace, host) for name in spec["hosts"]):
            continue
        for index, rule in enumerate(spec["tcp"]):
            if not rule.get("route"):
                continue
            key = f"{namespace}/{owner.name}"
            if not rule.get("match"):
                return best[1] if best else (key, index, None)
            passing = [
                (at, block)
                for at, block in enumerate(rule["match"])
                if naive_static(block, connection, namespace)
            ]
            free = next((at for at, block in passing if not block.get("destinationSubnets")), None)
            if free is not None:
                return best[1] if best else (key, index, free)
            for at, block in passing:
                for text in block["destinationSubnets"]:
                    length = naive_prefix(text, connection.destination_ip)
                    if length is not None and (best is None or length > best[0]):
                        best = (length, (key, index, at))
    return best[1] if best else "fallthrough"


def in_naive_order(found: list[Document], namespace: str) -> list[Document]:
    visible = []
    for one in found:
        if one.kind != "VirtualService":
            continue
        export = one.data["spec"].get("exportTo", ["*"])
        if "*" in export:
            group = 2
        elif "." in export and one.namespace == namespace:
            group = 0
        elif namespace in export:
            group = 0 if one.namespace == namespace else 1
        else:
            continue
        order = 0 if one.created else one.order
        visible.append((group, one.created or "~", order, one.name, one.namespace, one))
    return [entry[-1] for entry in sorted(visible, key=lambda entry: entry[:-1])]


def naive_match(name: str, namespace: str, host: str) -> bool:
    if name == "*":
        return True
    if "." not in name:
        name = f"{name}.{namespace}.svc.cluster.local"
    return host.endswith(name[1:]) if name.startswith("*") else name == host


def naive_static(block: Mapping[str, Any], connection: Connection, namespace: str) -> bool:
    if block.get("port", 0) not in (0, connection.destination_port):
        return False
    if block.get("gateways") and "mesh" not in block["gateways"]:
        return False
    if block.get("sourceNamespace") and block["sourceNamespace"] != connection.source_namespace:
        return False
    return all(
        connection.source_labels.get(key) == value for key, value in block.get("sourceLabels", {}).items()
    )


def naive_prefix(text: str, ip: str) -> int | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    return network.prefixlen if ipaddress.ip_address(ip) in network else None


def test_an_empty_mesh_passes_everything_through() -> None:
    router = SidecarEngine().router(build_snapshot(workloads=(), services=(), policies=()))
    decision = router.decide(Connection("10.0.0.1", 80), Hop(HopKind.CLIENT, "default"), random.Random(1))
    assert decision.action is Action.PASSTHROUGH
    assert not decision.refused
