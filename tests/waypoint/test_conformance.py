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

from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.istio_waypoint import IstioWaypointEngine
from waypoint.engines.sidecar import SidecarEngine
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Connection, Decision, Destination, Hop, HopKind

pytestmark = pytest.mark.unit

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


def hop_of(case: Case) -> Hop:
    asked = case["connection"]
    if case["hop"] == "gateway":
        return Hop(HopKind.GATEWAY, asked["gateway_namespace"], labels=asked["workload_labels"])
    if case["hop"] == "waypoint":
        return Hop(HopKind.WAYPOINT, asked["waypoint_namespace"])
    only = asked.get("outbound_policy") == "REGISTRY_ONLY"
    return Hop(HopKind.CLIENT, asked["src_namespace"], registry_only=only)


def connection_of(case: Case) -> Connection:
    asked = case["connection"]
    return Connection(
        destination_ip=asked.get("dst_ip", ""),
        destination_port=asked["dst_port"],
        source_ip=asked["src_ip"],
        source_namespace=asked.get("src_namespace", ""),
        source_labels=asked.get("src_labels", {}),
        protocol=asked["protocol"],
        server_name=asked.get("sni", ""),
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
def test_decision(case: Case, make_documents: Callable[..., Any], make_snapshot: Callable[..., Snapshot]) -> None:
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
