"""Waypoints: services known by name only, and services that only their own namespace sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from waypoint.engines.ambient import AmbientEngine
from ztun.mesh.document import Document
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.routing import Action, Connection, Decision, DestinationStatus, Hop, HopKind

pytestmark = pytest.mark.unit

HOST = "a.default.svc.cluster.local"
SERVICE = {
    "hostname": HOST,
    "namespace": "default",
    "vips": [],
    "ports": [{"name": "p", "number": 80, "target_port": 8080, "protocol": "TCP"}],
    "endpoints": [{"ip": "10.9.0.1", "namespace": "default"}],
}


def decide(snapshot: Snapshot, connection: Connection, namespace: str = "infra") -> Decision:
    router = AmbientEngine().router(snapshot)
    return router.decide(connection, Hop(HopKind.WAYPOINT, namespace), random.Random(1))


def test_a_service_without_address_is_found_by_its_name(make_snapshot: Callable[..., Snapshot]) -> None:
    snapshot = make_snapshot([SERVICE])
    found = decide(snapshot, Connection("", 80, destination_host=HOST))
    assert found.action is Action.FALLTHROUGH
    assert found.chosen is not None
    assert found.chosen.status is DestinationStatus.OK
    assert decide(snapshot, Connection("", 81, destination_host=HOST)).action is Action.PASSTHROUGH
    assert decide(snapshot, Connection("", 80, destination_host="b")).action is Action.PASSTHROUGH


def test_a_waypoint_serves_what_is_sent_to_it_wherever_it_is_visible(
    make_snapshot: Callable[..., Snapshot],
) -> None:
    snapshot = make_snapshot([{**SERVICE, "vips": ["10.0.0.1"]}])
    private = [replace(one, export_to=("default",)) for one in snapshot.services.values()]
    hidden = build_snapshot(workloads=snapshot.workloads.values(), services=private, policies=())
    assert decide(hidden, Connection("10.0.0.1", 80)).action is Action.FALLTHROUGH


def routes(*weights: int | None) -> Sequence[dict[str, Any]]:
    return [
        {"destination": {"host": HOST}, **({} if weight is None else {"weight": weight})}
        for weight in weights
    ]


@pytest.mark.parametrize("weights", [(0, 0), (None, None), (-1, 0)])
def test_weights_that_add_up_to_nothing_close_the_connection(
    make_documents: Callable[..., list[Document]],
    make_snapshot: Callable[..., Snapshot],
    weights: tuple[int | None, ...],
) -> None:
    resource = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "default"},
        "spec": {"hosts": [HOST], "tcp": [{"route": routes(*weights)}]},
    }
    found = decide(
        make_snapshot([SERVICE], make_documents([resource])), Connection("", 80, destination_host=HOST)
    )
    assert found.action is Action.REJECT
    assert found.refused
    assert "WT-TOTAL-ZERO" in {one.code for one in found.diagnostics}
