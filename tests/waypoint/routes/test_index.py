"""One snapshot after another: what is kept, what is compiled again, and what a broken document does."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.router import Cache
from waypoint.routes.index import RouteIndex
from ztun.mesh.document import Document
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.routing import Connection, Hop, HopKind

pytestmark = pytest.mark.unit

MakeDocuments = Callable[..., list[Document]]


def rule(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


GOOD = {"hosts": ["a"], "tcp": [{"route": [{"destination": {"host": "b"}}]}]}


def snapshot(documents: list[Document]) -> Snapshot:
    return build_snapshot(workloads=(), services=(), policies=(), documents=documents)


def test_an_unchanged_document_is_not_compiled_again(make_documents: MakeDocuments) -> None:
    first = RouteIndex(snapshot(make_documents([rule("x", GOOD), rule("y", GOOD)])))
    changed = make_documents([rule("y", {**GOOD, "hosts": ["c"]}), rule("x", GOOD)])
    second = RouteIndex(snapshot(changed), first)
    before = {one.name: one for one in first.virtual_services}
    after = {one.name: one for one in second.virtual_services}
    assert after["x"].tcp is before["x"].tcp
    assert after["x"].document is changed[1]
    assert after["y"].hosts == ("c.default.svc.cluster.local",)


def test_load_order_decides_without_timestamps_also_after_a_reload(make_documents: MakeDocuments) -> None:
    first = RouteIndex(snapshot(make_documents([rule("x", GOOD), rule("y", GOOD)])))
    second = RouteIndex(snapshot(make_documents([rule("y", GOOD), rule("x", GOOD)])), first)
    assert [one.name for one in first.virtual_services] == ["x", "y"]
    assert [one.name for one in second.virtual_services] == ["y", "x"]


def test_a_broken_document_keeps_the_last_valid_version(make_documents: MakeDocuments) -> None:
    index = RouteIndex(snapshot(make_documents([rule("x", GOOD)])))
    for _ in range(2):
        index = RouteIndex(snapshot(make_documents([rule("x", {"hosts": ["a"], "tcp": "oops"})])), index)
        assert [one.hosts for one in index.virtual_services] == [("a.default.svc.cluster.local",)]
        assert "the last valid version stays in force" in index.problems[0].hint
    index = RouteIndex(snapshot(make_documents([rule("x", {**GOOD, "hosts": ["z"]})])), index)
    assert [one.hosts for one in index.virtual_services] == [("z.default.svc.cluster.local",)]
    assert index.problems == ()


def test_an_unknown_version_is_refused(make_documents: MakeDocuments) -> None:
    (document,) = make_documents([rule("x", GOOD)])
    index = RouteIndex(snapshot([replace(document, api_version="networking.istio.io/v9")]))
    assert index.virtual_services == ()
    assert "v1alpha3" in index.problems[0].hint


def test_wildcard_hosts_are_found_by_their_suffix(make_documents: MakeDocuments) -> None:
    names = {"exact": "a.x.com", "deep": "*.x.com", "partial": "*x.com", "other": "*.y.com"}
    resources = [rule(name, {**GOOD, "hosts": [host]}) for name, host in names.items()]
    index = RouteIndex(snapshot(make_documents(resources)))
    assert [one.name for one in index.mesh_candidates("a.x.com")] == ["exact", "deep", "partial"]
    assert [one.name for one in index.mesh_candidates("ax.com")] == ["partial"]
    assert [one.name for one in index.mesh_candidates("*.x.com")] == ["exact", "deep", "partial"]


def test_a_router_takes_over_from_the_previous_one(make_documents: MakeDocuments) -> None:
    engine = AmbientEngine()
    first = engine.router(snapshot(make_documents([rule("x", GOOD)])))
    second = engine.router(snapshot(make_documents([rule("x", GOOD)])), first)
    assert second.index.virtual_services[0].tcp is first.index.virtual_services[0].tcp


def test_refused_attributes_are_reported_once_per_object(make_documents: MakeDocuments) -> None:
    match = [{"port": 80}, {"port": 81, "sourceNamespace": "x"}]
    spec = {"hosts": ["a"], "tcp": [{"match": match, "route": GOOD["tcp"][0]["route"]}] * 2}  # type: ignore[index]
    router = AmbientEngine().router(snapshot(make_documents([rule("x", spec)])))
    codes = [one.code for one in router.diagnostics()]
    assert codes == ["AMB-MATCH-PORT", "AMB-MATCH-NAMESPACE", "AMB-RULE-DROPPED"]


def test_the_cache_of_tables_is_bounded() -> None:
    cache = Cache(limit=3)
    made = [cache.get(("key", number), lambda number=number: number + 1) for number in range(10)]  # type: ignore[misc]
    assert made == list(range(1, 11))
    assert len(cache._values) == 3


def test_a_share_is_drawn_per_connection(
    make_documents: MakeDocuments, make_snapshot: Callable[..., Snapshot]
) -> None:
    service = {
        "hostname": "a.default.svc.cluster.local",
        "namespace": "default",
        "vips": ["10.0.0.1"],
        "ports": [{"name": "p", "number": 80, "target_port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"ip": f"10.9.0.{number}", "namespace": "default", "labels": {"v": str(number)}}
            for number in (1, 2)
        ],
    }
    subsets = [{"name": f"s{number}", "labels": {"v": str(number)}} for number in (1, 2)]
    routes = [
        {"destination": {"host": "a", "subset": "s1"}, "weight": 80},
        {"destination": {"host": "a", "subset": "s2"}, "weight": 20},
    ]
    destination_rule = {**rule("d", {"host": "a", "subsets": subsets}), "kind": "DestinationRule"}
    resources = [rule("x", {"hosts": ["a"], "tcp": [{"route": routes}]}), destination_rule]
    router = AmbientEngine().router(make_snapshot([service], make_documents(resources)))
    rng, drawn = random.Random(7), 0
    for _ in range(4000):
        decision = router.decide(Connection("10.0.0.1", 80), Hop(HopKind.WAYPOINT, "default"), rng)
        assert decision.chosen is not None
        drawn += decision.chosen.subset == "s1"
    # Four standard deviations of a binomial distribution.
    assert abs(drawn / 4000 - 0.8) <= 4 * (0.8 * 0.2 / 4000) ** 0.5
