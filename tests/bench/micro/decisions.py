"""``make bench-micro``: the decisions of a connection in a mesh of 1,000 workloads. Nothing about time is asserted."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from certs.spiffe import SpiffeId
from tests.bench.documents import (
    CLIENT,
    HBONE_PORT,
    SERVER,
    VIP,
    as_text,
    server_policy,
    server_service,
    waypoint_documents,
)
from tests.bench.growth import crowd
from tests.peers.node import Pod
from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.sidecar import SidecarEngine
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.inbound import decide_inbound
from ztun.mesh.lookup import RouteKind, decide_outbound
from ztun.mesh.model import Workload
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate
from ztun.routing import Connection, Hop, HopKind, RoutingEngine

pytestmark = pytest.mark.unit

CLIENT_POD = Pod(CLIENT.service_account, "10.0.1.10", "node-a")
SERVER_POD = Pod(SERVER.service_account, "10.0.2.10", "node-b")
WORKLOADS = 1000
NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "default", "labels": {"istio.io/dataplane-mode": "ambient"}},
}


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    documents = [
        NAMESPACE,
        CLIENT_POD.document(),
        SERVER_POD.document(),
        server_service(waypoint=False),
        server_policy(CLIENT),
        *waypoint_documents(),
        *crowd.mesh(WORKLOADS),
    ]
    found, problems = parse_documents(as_text(documents), file="mesh.yaml")
    assert problems == []
    return translate(found, settings=MeshSettings()).snapshot


def named(snapshot: Snapshot, name: str) -> Workload:
    workload = snapshot.workload_named("default", name)
    assert workload is not None
    return workload


@pytest.mark.parametrize(
    ("host", "port"), [(SERVER_POD.ip, 9000), (VIP, 9000), ("server.default.svc.cluster.local", 9000)]
)
def test_outbound(benchmark: BenchmarkFixture, snapshot: Snapshot, host: str, port: int) -> None:
    """By the address of a pod, by a virtual address, by name."""
    source = named(snapshot, "client")
    rng = random.Random(1)
    route = benchmark(lambda: decide_outbound(snapshot, source, host, port, rng=rng))
    assert route.kind is RouteKind.HBONE
    assert route.address == (SERVER_POD.ip, HBONE_PORT)


def test_inbound(benchmark: BenchmarkFixture, snapshot: Snapshot) -> None:
    local = named(snapshot, "server")
    target = benchmark(decide_inbound, snapshot, local, SERVER_POD.ip, f"{SERVER_POD.ip}:9000")
    assert target.port == 9000


@pytest.mark.parametrize(("client", "allowed"), [(CLIENT, True), (SERVER, False)], ids=["allowed", "denied"])
def test_authorization(
    benchmark: BenchmarkFixture, snapshot: Snapshot, client: SpiffeId, allowed: bool
) -> None:
    """The policies that apply are looked up, and judged."""
    local = named(snapshot, "server")
    attempt = Attempt(CLIENT_POD.ip, client, SERVER_POD.ip, 9000)
    verdict = benchmark(lambda: authorize(snapshot.policies_for(local), attempt))
    assert verdict.allowed is allowed


@pytest.mark.parametrize(
    ("make", "kind"), [(AmbientEngine, HopKind.WAYPOINT), (SidecarEngine, HopKind.CLIENT)]
)
def test_route(
    benchmark: BenchmarkFixture, snapshot: Snapshot, make: Callable[[], RoutingEngine], kind: HopKind
) -> None:
    """A rule of a VirtualService, by the engine of a waypoint and by that of a sidecar."""
    router = make().router(snapshot)
    connection = Connection(VIP, 9000, source_namespace="default", source_labels={"app": "client"})
    hop = Hop(kind, "default")
    decision = benchmark(router.decide, connection, hop, random.Random(1))
    assert "server" in repr(decision)
