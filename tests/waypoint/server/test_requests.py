"""Requests to a waypoint: who may, for what, and where they go."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.waypoint.server.mesh import OTHER_VIP, SERVICE_PORT, VIP, WAYPOINT, WaypointMesh
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, until
from ztun.errors import ConnectRefused
from ztun.hbone.wire import ErrorCode
from ztun.mesh.model import (
    Authorization,
    GatewayAddress,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
    TunnelProtocol,
    WeightedWaypoint,
)
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Action, Connection, Decision, Hop, Router

pytestmark = pytest.mark.net

GATEWAY_API = "gateway.networking.k8s.io"
TO_WAYPOINT = (GATEWAY_API, "Gateway", "waypoint")
TO_SERVICE = ("", "Service", "echo")
ECHO = "echo.default.svc.cluster.local"


def policy(
    name: str, action: PolicyAction, client: str, target: tuple[str, str, str] = TO_WAYPOINT
) -> Authorization:
    """About connections of one service account."""
    principal = StringMatch(StringMatchKind.EXACT, f"cluster.local/ns/default/sa/{client}")
    return Authorization(
        name,
        "default",
        PolicyScope.NAMESPACE,
        action,
        (((Match(principals=(principal,)),),),),
        target_refs=(target,),
    )


def to(host: str, *, name: str = "to") -> dict[str, object]:
    """A VirtualService that sends everything for ``echo`` to ``host``."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"hosts": [ECHO], "tcp": [{"route": [{"destination": {"host": host}}]}]},
    }


async def echoed(mesh: WaypointMesh, wires: Wires) -> bool:
    """Whether a new connection of the client is answered by an echo."""
    client = await wires.dial(await mesh.enter_service())
    client.writer.write(b"hello")
    client.end()
    try:
        return await client.receive_all() == b"hello"
    except ConnectionError:
        return False


# -- what is served ------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("authority", [f"{VIP}:{SERVICE_PORT}", f"{ECHO}:{SERVICE_PORT}"])
async def test_a_service_is_served_by_address_and_by_name(
    mesh: WaypointMesh, wires: Wires, authority: str
) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    stream = await mesh.request(authority)
    await application.accept()
    stream.abort(ErrorCode.CANCEL)
    end = await mesh.waypoint.journal.end()
    assert end.source_identity == mesh.client.identity
    assert end.service == ECHO


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("authority", "status"),
    [
        (f"{OTHER_VIP}:{SERVICE_PORT}", 404),
        ("127.0.0.1:22", 404),
        ("example.com:443", 404),
        (f"{VIP}:80", 404),
        (f"{VIP}", 400),
        (f"{ECHO}:0", 400),
    ],
)
async def test_it_is_no_open_proxy(mesh: WaypointMesh, wires: Wires, authority: str, status: int) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    with pytest.raises(ConnectRefused) as refused:
        await mesh.request(authority)
    assert refused.value.status == status
    refusal = await mesh.waypoint.journal.refusal()
    assert code(refusal) in ("not_served", "no_port", "bad_authority")
    assert application.accepted == 0
    assert len(mesh.waypoint.plane.connections) == 0


@pytest.mark.asyncio
async def test_a_pod_behind_a_service_waypoint_is_not_served_by_its_address(mesh: WaypointMesh) -> None:
    await mesh.run()
    with pytest.raises(ConnectRefused) as refused:
        await mesh.request(f"{mesh.server.addresses[0]}:{APP_PORT}")
    assert refused.value.status == 404


@pytest.mark.asyncio
async def test_a_workload_behind_it_is_served_without_routing(mesh: WaypointMesh, wires: Wires) -> None:
    mesh.workloads["server"] = replace(mesh.server, waypoint=WAYPOINT)
    mesh.rules([to("elsewhere.default.svc.cluster.local")])
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    client = await wires.dial(await mesh.enter(mesh.client, mesh.server.addresses[0]))
    server = await application.accept()
    await client.send(b"direct")
    assert await server.receive(6) == b"direct"
    client.reset()
    end = await mesh.waypoint.journal.end()
    assert end.hbone_addr == f"{mesh.server.addresses[0]}:{APP_PORT}"
    assert end.service == ""
    assert end.destination is not None
    assert end.destination.name == "server"


@pytest.mark.asyncio
async def test_a_canary_carries_what_is_drawn_for_it(mesh: WaypointMesh, wires: Wires) -> None:
    """The only instance that runs is the canary's: all of the weight arrives there, and goes on from there."""
    primary = GatewayAddress(("default", "primary.default.svc.cluster.local"))
    shares = (WeightedWaypoint(primary, 0), WeightedWaypoint(WAYPOINT, 100))
    mesh.services["echo"] = replace(mesh.services["echo"], waypoint=primary, weighted_waypoints=shares)
    await wires.echo(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    assert await echoed(mesh, wires)
    assert (await mesh.waypoint.journal.end()).service == ECHO
    mesh.services["echo"] = replace(
        mesh.services["echo"],
        weighted_waypoints=(replace(shares[0], weight=100), replace(shares[1], weight=0)),
    )
    await mesh.apply()
    assert not await echoed(mesh, wires), "the waypoint itself has no instance"


@pytest.mark.asyncio
async def test_a_waypoint_that_is_unknown_is_not_passed_by(mesh: WaypointMesh, wires: Wires) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    nowhere = GatewayAddress(("default", "gone.default.waypoint.invalid"))
    mesh.services["echo"] = replace(mesh.services["echo"], waypoint=nowhere)
    mesh.workloads["server"] = replace(mesh.server, waypoint=nowhere)
    await mesh.run()
    for entry in (
        await mesh.enter_service(),
        await mesh.enter(mesh.client, mesh.server.addresses[0]),
    ):
        assert await (await wires.dial(entry)).ending() == "reset"
    assert [code(await mesh.near.journal.refusal(number)) for number in (1, 2)] == ["unknown_waypoint"] * 2
    assert application.accepted == 0


# -- who may -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("target", [TO_WAYPOINT, TO_SERVICE])
async def test_a_denied_client_is_turned_away(
    mesh: WaypointMesh, wires: Wires, target: tuple[str, str, str]
) -> None:
    application = await wires.echo(mesh.server.addresses[0], APP_PORT)
    mesh.policies["no"] = policy("no", PolicyAction.DENY, "client", target)
    mesh.policies["yes"] = policy("yes", PolicyAction.ALLOW, "client", target)
    await mesh.run()
    with pytest.raises(ConnectRefused) as refused:
        await mesh.request(f"{VIP}:{SERVICE_PORT}")
    assert refused.value.status == 401
    assert code(await mesh.waypoint.journal.end()) == "policy_rejection"
    assert application.accepted == 0
    del mesh.policies["no"]
    await mesh.apply()
    assert await echoed(mesh, wires)


@pytest.mark.asyncio
async def test_with_policies_that_allow_others_nobody_else_may(mesh: WaypointMesh, wires: Wires) -> None:
    await wires.echo(mesh.server.addresses[0], APP_PORT)
    mesh.policies["others"] = policy("others", PolicyAction.ALLOW, "somebody-else")
    await mesh.run()
    assert not await echoed(mesh, wires)


@pytest.mark.asyncio
async def test_policies_of_pods_are_not_the_waypoints_affair(mesh: WaypointMesh, wires: Wires) -> None:
    """They are judged by the node proxy of the server, which sees the waypoint as the client."""
    await wires.echo(mesh.server.addresses[0], APP_PORT)
    allow = replace(policy("allow", PolicyAction.ALLOW, "waypoint"), target_refs=())
    mesh.policies["allow"] = allow
    await mesh.run()
    assert await echoed(mesh, wires)
    mesh.policies["allow"] = replace(policy("allow", PolicyAction.ALLOW, "client"), target_refs=())
    await mesh.apply()
    assert not await echoed(mesh, wires)
    assert code(await mesh.far.journal.end(2)) == "policy_rejection"


@pytest.mark.asyncio
async def test_open_connections_are_judged_by_policies_that_come_later(
    mesh: WaypointMesh, wires: Wires
) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    client = await wires.dial(await mesh.enter_service())
    server = await application.accept()
    await client.send(b"x")
    await server.receive(1)
    mesh.policies["other"] = policy("other", PolicyAction.DENY, "somebody-else")
    await mesh.apply()
    await client.send(b"y")
    assert await server.receive(1) == b"y"
    mesh.policies["no"] = policy("no", PolicyAction.DENY, "client", TO_SERVICE)
    await mesh.apply()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    assert code(await mesh.waypoint.journal.end()) == "policy_late_rejection"


# -- where they go -------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_endpoint_outside_the_mesh_is_dialled_plainly(mesh: WaypointMesh, wires: Wires) -> None:
    application = await wires.application(mesh.other.addresses[0], APP_PORT)
    mesh.workloads["server"] = replace(mesh.server, capacity=0)
    mesh.workloads["other"] = replace(
        mesh.other, tunnel_protocol=TunnelProtocol.NONE, services=mesh.server.services
    )
    await mesh.run()
    client = await wires.dial(await mesh.enter_service())
    server = await application.accept()
    assert server.peer[0] == mesh.waypoint_pod.addresses[0]
    await client.send(b"plain")
    assert await server.receive(5) == b"plain"


@pytest.mark.asyncio
async def test_an_endpoint_with_another_identity_gets_no_byte(mesh: WaypointMesh, wires: Wires) -> None:
    """The address is known to belong to another account: the certificate that is shown is the wrong one."""
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    mesh.workloads["server"] = replace(mesh.server, service_account="somebody-else")
    snapshot = mesh.snapshot()
    mesh.waypoint.plane.replace_snapshot(snapshot)
    await mesh.waypoint.role.reconcile(snapshot)
    assert not await echoed(mesh, wires)
    assert code(await mesh.waypoint.journal.end()) == "peer_identity_mismatch"
    assert application.accepted == 0


@pytest.mark.asyncio
async def test_another_endpoint_is_tried_once(mesh: WaypointMesh, wires: Wires) -> None:
    """``other`` is an endpoint at which nothing listens."""
    await wires.echo(mesh.server.addresses[0], APP_PORT)
    mesh.workloads["other"] = replace(mesh.other, services=mesh.server.services)
    await mesh.run()
    while not mesh.waypoint.sample("ztun_connection_failures_total", code="http_status_503"):
        assert await echoed(mesh, wires)
    assert await echoed(mesh, wires)


@pytest.mark.asyncio
async def test_when_every_endpoint_fails_the_client_is_told(mesh: WaypointMesh, wires: Wires) -> None:
    mesh.workloads["other"] = replace(mesh.other, services=mesh.server.services)
    await mesh.run()
    with pytest.raises(ConnectRefused) as refused:
        await mesh.request(f"{VIP}:{SERVICE_PORT}")
    assert refused.value.status == 503
    assert code(await mesh.waypoint.journal.end()) == "http_status_503"


@pytest.mark.asyncio
async def test_a_black_hole_is_a_refusal_that_names_the_rule(mesh: WaypointMesh, wires: Wires) -> None:
    await wires.echo(mesh.server.addresses[0], APP_PORT)
    mesh.rules([to("nowhere.default.svc.cluster.local")])
    await mesh.run()
    with pytest.raises(ConnectRefused) as refused:
        await mesh.request(f"{VIP}:{SERVICE_PORT}")
    assert refused.value.status == 503
    refusal = await mesh.waypoint.journal.refusal()
    assert code(refusal) == "route_no_host"
    assert "default/to tcp[0]" in str(refusal.error)
    mesh.rules([])
    await mesh.apply()
    assert await echoed(mesh, wires)


@pytest.mark.asyncio
async def test_connections_that_are_open_outlive_their_rule_and_their_service(
    mesh: WaypointMesh, wires: Wires
) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    client = await wires.dial(await mesh.enter_service())
    server = await application.accept()
    mesh.rules([to("nowhere.default.svc.cluster.local")])
    await mesh.apply()
    del mesh.services["echo"]
    await mesh.apply()
    await client.send(b"still here")
    assert await server.receive(10) == b"still here"
    assert await (await wires.dial(await mesh.enter_service())).ending() == "reset"


@pytest.mark.asyncio
async def test_a_waypoint_whose_pod_is_gone_lets_its_connections_go(mesh: WaypointMesh, wires: Wires) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    client = await wires.dial(await mesh.enter_service())
    await application.accept()
    connection = next(iter(mesh.waypoint.plane.connections))
    await until(lambda: connection.relay is not None)
    del mesh.workloads["waypoint"]
    await mesh.apply()
    assert await client.ending() == "reset"
    assert code(await mesh.waypoint.journal.end()) == "workload_gone"
    assert mesh.waypoint.role.pending == 1
    mesh.workloads["waypoint"] = mesh.waypoint_pod
    await mesh.apply()
    assert mesh.waypoint.role.pending == 0
    await wires.dial(await mesh.enter_service())
    await application.accept()


# -- engines that are not ours -------------------------------------------------------------------------------


class Custom:
    """An engine and its router at once: passes everything on, remembering what it was asked."""

    name = "custom"

    def __init__(self) -> None:
        self.asked: list[tuple[Connection, Hop]] = []
        self.broken = False

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> Custom:
        return self

    def decide(
        self, connection: Connection, hop: Hop, rng: random.Random, *, trace: bool = False
    ) -> Decision:
        self.asked.append((connection, hop))
        if self.broken:
            raise ValueError("a mistake in the engine")
        return Decision(Action.PASSTHROUGH)

    def wants_server_name(self, connection: Connection, hop: Hop) -> bool:
        return False

    def diagnostics(self) -> tuple[()]:
        return ()


@pytest.mark.asyncio
async def test_an_engine_learns_all_that_is_known_and_cannot_open_the_proxy(mesh: WaypointMesh) -> None:
    engine = Custom()
    await mesh.run(engine=engine)
    with pytest.raises(ConnectRefused) as refused:
        await mesh.request(f"{VIP}:{SERVICE_PORT}")
    assert refused.value.status == 404
    ((connection, hop),) = engine.asked
    assert connection == Connection(
        VIP,
        SERVICE_PORT,
        mesh.client.addresses[0],
        "default",
        source_identity=mesh.client.identity,
    )
    assert (hop.kind.value, hop.namespace, hop.name) == ("waypoint", "default", "waypoint")
    engine.broken = True
    with pytest.raises(ConnectRefused) as failed:
        await mesh.request(f"{VIP}:{SERVICE_PORT}")
    assert failed.value.status == 503
    assert code(await mesh.waypoint.journal.refusal(2)) == "engine_error"


@pytest.mark.asyncio
async def test_many_connections_share_a_tunnel_on_either_side(mesh: WaypointMesh, wires: Wires) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    entry = await mesh.enter_service()
    for _ in range(50):
        client = await wires.dial(entry)
        server = await application.accept()
        await client.send(b"x")
        assert await server.receive(1) == b"x"
    assert len(list(mesh.near.plane.home.pool.tunnels())) == 1
    assert len(list(mesh.waypoint.plane.home.pool.tunnels())) == 1
