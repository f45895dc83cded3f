"""The conformance cases: one test per case of a file, by default the one beside this test.

Another file of the same form can be named in the environment variable ROUTING_CASES.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.spiffe import SpiffeId
from waypoint.analysis.analyzer import analyze, check_document
from waypoint.analysis.configuration import configuration_of
from waypoint.analysis.report import Report
from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.istio_waypoint import IstioWaypointEngine
from waypoint.engines.sidecar import SidecarEngine
from waypoint.routes.destinations import shares
from waypoint.routes.index import RouteIndex
from waypoint.routes.model import L4Rule, VirtualService
from waypoint.routes.names import expand_gateway, expand_host, host_matches, host_subset_of
from ztun.errors import RouteError
from ztun.mesh.document import Document
from ztun.mesh.inbound import decide_inbound
from ztun.mesh.lookup import RouteKind, decide_outbound
from ztun.mesh.model import ApplicationTunnel, AppTunnelProtocol, TunnelProtocol, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.routing import Connection, Decision, Destination, Hop, HopKind

pytestmark = pytest.mark.unit

DISPUTED = Path(__file__).parent / "cases" / "disputed.yaml"
CASES = Path(os.environ.get("ROUTING_CASES", Path(__file__).parent / "cases" / "routing.yaml"))
SHARE_DIGITS = 6

Case = dict[str, Any]


def load_cases() -> list[Case]:
    with CASES.open() as file:
        cases: list[Case] = yaml.load(file, Loader=yaml.CSafeLoader)
    return cases


ALL_CASES = load_cases()
ENGINES = {"sidecar": SidecarEngine, "ambient": AmbientEngine, "istio-waypoint": IstioWaypointEngine}


def of_mode(*modes: str) -> pytest.MarkDecorator:
    chosen = [pytest.param(case, id=case["id"]) for case in ALL_CASES if case["mode"] in modes]
    return pytest.mark.parametrize("case", chosen)


def test_every_mode_has_a_runner() -> None:
    known = {*ENGINES, "validate", "analyze", "gateway-api", "dr", "names", "ztunnel"}
    assert {case["mode"] for case in ALL_CASES} <= known


def test_disputed_cases_are_known_and_have_evidence() -> None:
    disputed = yaml.safe_load(DISPUTED.read_text())
    own = yaml.safe_load((DISPUTED.parent / "routing.yaml").read_text())
    assert {one["id"] for one in disputed} <= {case["id"] for case in own}
    assert all(one["evidence"] and one["here"] for one in disputed)


def hop_of(case: Case) -> Hop:
    asked = case["connection"]
    if case["hop"] == "gateway":
        return Hop(HopKind.GATEWAY, asked["gateway_namespace"], labels=asked.get("workload_labels") or {})
    if case["hop"] == "waypoint":
        return Hop(HopKind.WAYPOINT, asked["waypoint_namespace"])
    only = asked.get("outbound_policy") == "REGISTRY_ONLY"
    return Hop(HopKind.CLIENT, asked.get("src_namespace") or "", registry_only=only)


def connection_of(case: Case) -> Connection:
    asked = case["connection"]
    return Connection(
        destination_ip=asked.get("dst_ip") or "",
        destination_port=asked["dst_port"],
        source_ip=asked["src_ip"],
        source_namespace=asked.get("src_namespace") or "",
        source_labels=asked.get("src_labels") or {},
        protocol=asked["protocol"],
        server_name=asked.get("sni") or "",
    )


def engine_of(case: Case) -> Any:
    policy = case["connection"].get("subset_policy")
    return AmbientEngine(policy) if policy and case["mode"] == "ambient" else ENGINES[case["mode"]]()


def shown(destination: Destination, expected: dict[str, Any]) -> dict[str, Any]:
    """The destination with the fields that the case names."""
    values = {
        "host": destination.host,
        "port": destination.port,
        "subset": destination.subset,
        "weight": destination.weight,
        "share": round(float(destination.share), SHARE_DIGITS),
        "status": destination.status.value,
        "endpoints": [f"{one.ip}:{one.port}" for one in destination.endpoints],
    }
    return {name: values[name] for name in expected}


@of_mode("sidecar", "ambient", "istio-waypoint")
def test_decision(
    case: Case, make_documents: Callable[..., Any], make_snapshot: Callable[..., Snapshot]
) -> None:
    snapshot = make_snapshot(case["services"] or [], make_documents(case["resources"] or []))
    router = engine_of(case).router(snapshot)
    connection, hop, expected = connection_of(case), hop_of(case), case["expect"]
    decision = router.decide(connection, hop, random.Random(1))

    assert decision.action.value == expected["action"]
    if "destinations" in expected:
        wanted = expected["destinations"]
        assert [shown(*pair) for pair in zip(decision.destinations, wanted, strict=True)] == wanted
    if expected.get("matched"):
        matched = decision.matched
        assert matched is not None
        assert expected["matched"] == {
            "virtualService": matched.virtual_service,
            "section": matched.section,
            "rule": matched.rule,
            "match": matched.block,
        }
    assert set(expected.get("diagnostics") or ()) <= {one.code for one in decision.diagnostics}
    traced = router.decide(connection, hop, random.Random(1), trace=True)
    assert traced.trace or decision.action.value == "no_listener"
    assert without_trace(traced) == without_trace(decision)


def without_trace(decision: Decision) -> tuple[Any, ...]:
    return decision.action, decision.matched, decision.destinations, decision.chosen, decision.diagnostics


@of_mode("validate")
def test_validation(case: Case, make_documents: Callable[..., Any]) -> None:
    check_validation(case, make_documents(case["resources"]))


def check_validation(case: Case, documents: list[Document]) -> None:
    report = Report()
    for document in documents:
        check_document(document, report)
    found = report.diagnostics()
    errors = {one.code for one in found if one.severity == "error"}
    expected = case["expect"]
    assert set(expected["errors"]) <= errors
    assert set(expected["warnings"]) <= {one.code for one in found if one.severity != "error"}
    assert (expected["action"] == "invalid") == bool(errors)


@of_mode("analyze")
def test_analysis(case: Case, make_documents: Callable[..., Any]) -> None:
    found = analyze(configuration_of(make_documents(case["resources"])))
    messages = {(one.code, one.object) for one in found}
    expected = {(one["code"], one["on"]) for one in case["expect"]["messages"]}
    assert expected <= messages
    if not expected:
        assert not [str(one) for one in found if one.severity == "error"]


@of_mode("gateway-api")
def test_gateway_api(case: Case, make_documents: Callable[..., Any]) -> None:
    expected = case["expect"]
    documents = make_documents(case["resources"])
    if expected["action"] in ("valid", "invalid"):
        check_validation(case, documents)
        return
    index = RouteIndex(build_snapshot(workloads=(), services=(), policies=(), documents=documents))
    rules = [(owner, rule) for owner in index.virtual_services for rule in (*owner.tcp, *owner.tls)]
    wanted = expected["rules"]
    assert [
        shown_rule(owner, rule, like) for (owner, rule), like in zip(rules, wanted, strict=True)
    ] == wanted
    assert bool(rules) == (expected["action"] == "converted")
    assert set(expected["diagnostics"]) <= {one.code for one in index.conversion_diagnostics}
    if expected.get("connection_result") == "reject":
        assert not any(target.permitted for _, rule in rules for target, _ in shares(rule))


def shown_rule(owner: VirtualService, rule: L4Rule, like: Case) -> Case:
    match: Case | None = None
    for block in rule.blocks:
        match = {}
        if block.attached_port:
            match["port"] = block.attached_port
        if block.sni_hosts:
            match["sniHosts"] = list(block.sni_hosts)
    weighted = shares(rule)
    total = sum(weight for _, weight in weighted)
    routes = [
        {
            "host": target.host,
            "port": target.port,
            "share": round(weight / total, SHARE_DIGITS),
            "status": "ok" if target.permitted else "not_permitted",
        }
        for target, weight in weighted
    ]
    values = {
        "gateways": list(owner.gateways),
        "hosts": list(owner.hosts),
        "match": match,
        "routes": routes,
        "section": rule.section,
    }
    return {name: values[name] for name in like}


@of_mode("dr")
def test_destination_rule_levels(case: Case, make_documents: Callable[..., Any]) -> None:
    asked, expected = case["connection"], case["expect"]
    documents = make_documents(case["resources"])
    index = RouteIndex(build_snapshot(workloads=(), services=(), policies=(), documents=documents))
    found = index.destination_rules.for_client(
        asked["service_host"], asked["service_namespace"], asked["client_namespace"], asked["client_labels"]
    )
    assert [rule.key for rule in found.sources] == expected["from"]
    assert list(found.subsets) == expected["subsets"]
    assert (expected["action"] == "resolved") == bool(found.sources)


@of_mode("names")
def test_names(case: Case) -> None:
    asked = case["connection"]
    operations: dict[str, Callable[[], Any]] = {
        "resolve_gateway": lambda: expand_gateway(asked["name"], asked["namespace"]),
        "resolve_host": lambda: expand_host(asked["name"], asked["namespace"]),
        "host_matches": lambda: host_matches(asked["a"], asked["b"]),
        "host_subset_of": lambda: host_subset_of(asked["a"], asked["b"]),
    }
    assert operations[asked["op"]]() == case["expect"]["value"]


@of_mode("ztunnel")
def test_node_proxy(case: Case, make_snapshot: Callable[..., Snapshot]) -> None:
    """What the node proxy does around a waypoint: the same decisions that its data path makes."""
    asked, expected = case["connection"], case["expect"]
    waypoint_spec = next(
        (one.get("waypoint") or one.get("workload_waypoint") for one in case["services"]), None
    )
    source = workload(asked["src_ip"], asked["src_namespace"], asked.get("src_identity"))
    workloads = {source.uid: source}
    if waypoint_spec:
        waypoint = workload(
            waypoint_spec["ip"],
            waypoint_spec["namespace"],
            f"spiffe://cluster.local/ns/{waypoint_spec['namespace']}/sa/{waypoint_spec['service_account']}",
            binding=waypoint_spec.get("inbound_binding", ""),
        )
        workloads[waypoint.uid] = waypoint
        source = workloads[source.uid]
    snapshot = make_snapshot(case["services"], workloads=list(workloads.values()))
    if expected["action"] == "deliver":
        check_delivery(case, snapshot, waypoint)
        return
    dialled_ip, port, client_ip = asked["dst_ip"], asked["dst_port"], asked["src_ip"]
    if expected["action"] in ("reject", "no_listener", "blackhole"):
        with pytest.raises(RouteError):
            decide_outbound(snapshot, source, dialled_ip, port, rng=random.Random(3), source_ip=client_ip)
        return
    route = decide_outbound(snapshot, source, dialled_ip, port, rng=random.Random(3), source_ip=client_ip)
    if expected["action"] == "passthrough":
        assert route.kind is RouteKind.PASSTHROUGH
        return
    dialled = f"{route.address[0]}:{route.address[1]}"
    assert matches(expected["dial"], dialled, route.address[0])
    authority = expected.get("authority")
    assert (authority is None) == (route.authority is None)
    if authority is not None:
        assert matches(authority, str(route.authority), route.address[0])
    tunnelled = route.kind in (RouteKind.HBONE, RouteKind.WAYPOINT)
    assert ("HBONE" if tunnelled else "TCP") == expected["protocol"]
    if "expected_server_identity" in expected:
        assert [str(identity) for identity in route.expected] == [expected["expected_server_identity"]]
    if "client_identity" in expected:
        assert str(source.identity) == expected["client_identity"]


def check_delivery(case: Case, snapshot: Snapshot, waypoint: Workload) -> None:
    """A sandwiched waypoint: plain bytes behind a PROXY header, from the node proxy beside it."""
    asked, expected = case["connection"], case["expect"]
    authority = f"{asked['dst_ip']}:{asked['dst_port']}"
    target = decide_inbound(snapshot, waypoint, waypoint.addresses[0], authority)
    header = expected["proxy_v2"]
    assert f"{target.ip}:{target.port}" == expected["to"]
    assert target.proxy_destination is not None
    assert "{}:{}".format(*target.proxy_destination) == header["dst"]
    assert header["src_ip"] == asked["src_ip"]
    assert header["tlvs"]["0xD0"] == asked["src_identity"]


def matches(pattern: str, text: str, dialled_ip: str) -> bool:
    """``<one of a,b>:port`` and ``<same pod ip>:port``, or the text itself."""
    if not pattern.startswith("<"):
        return pattern == text
    choice, _, port = pattern[1:].partition(">:")
    ip, _, given = text.rpartition(":")
    allowed = choice.removeprefix("one of ").split(",") if choice.startswith("one of ") else [dialled_ip]
    return given == port and ip in allowed


def workload(ip: str, namespace: str, identity: str | None, binding: str = "") -> Workload:
    account = SpiffeId.parse(identity).service_account if identity else "default"
    tunnel = None
    if binding:
        protocol, _, port = binding.partition("/")
        tunnel = ApplicationTunnel(AppTunnelProtocol(protocol), int(port or 0))
    return Workload(
        uid=f"Kubernetes//Pod/{namespace}/{ip}",
        name=f"pod-{ip}",
        namespace=namespace,
        addresses=(ip,),
        service_account=account,
        tunnel_protocol=TunnelProtocol.HBONE,
        application_tunnel=tunnel,
    )
