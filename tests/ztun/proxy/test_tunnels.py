"""Which tunnel a connection uses, and how tunnels end: shared, full, leaving, idle, lost, not answering."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, PingReceived

from tests.certs.handshake import certificate
from tests.ztun.proxy.applications import Application, Wire, Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Node, Pair, only, until
from tests.ztun.proxy.rogue import H2Client, H2Server, answer_ok, client_context, server_context
from ztun.hbone.settings import TunnelSettings
from ztun.hbone.wire import goaway
from ztun.mesh.model import Workload
from ztun.net.pool import PoolLimits
from ztun.net.tunnel import Tunnel

pytestmark = pytest.mark.net


async def open_one(
    pair: Pair, wires: Wires, application: Application, source: Workload | None = None
) -> tuple[Wire, Wire]:
    client = await wires.dial(await pair.enter(source or pair.client, pair.server_ip))
    server = await application.accept()
    await exchange(client, server)
    return client, server


async def exchange(client: Wire, server: Wire) -> None:
    await client.send(b"question")
    assert await server.receive(8) == b"question"
    await server.send(b"answer")
    assert await client.receive(6) == b"answer"


def tunnels(node: Node) -> list[Tunnel]:
    return [tunnel for _, tunnel in node.plane.home.pool.tunnels()]


def accepted(node: Node) -> float:
    """How many tunnels of peers are open."""
    return node.sample("ztun_tunnels_open", role="server")


@pytest.mark.asyncio
async def test_connections_of_one_pod_share_a_tunnel(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    for _ in range(5):
        client, server = await open_one(pair, wires, application)
        await exchange(client, server)
    assert len(tunnels(pair.near)) == 1
    assert accepted(pair.far) == 1


@pytest.mark.asyncio
async def test_pods_do_not_share_a_tunnel(pair: Pair, wires: Wires) -> None:
    """Not even two of the same identity: the destination sees their addresses."""
    other = pair.pod("other", "near")
    twin = pair.pod("twin", "near")
    twin = pair.workloads["twin"] = _with_account(twin, "client")
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    seen = []
    for source in (pair.client, other, twin, pair.client):
        _, server = await open_one(pair, wires, application, source)
        seen.append(server.peer[0])
        assert str(pair.far.journal.opens[-1].source_identity) == str(source.identity)
    assert seen == [one.addresses[0] for one in (pair.client, other, twin, pair.client)]
    assert accepted(pair.far) == 3


def _with_account(pod: Workload, account: str) -> Workload:
    return replace(pod, service_account=account)


@pytest.mark.asyncio
async def test_peer_that_leaves_gets_no_new_connections(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await open_one(pair, wires, application)
    (old,) = tunnels(pair.near)
    pair.far.inbound.drain()
    await until(lambda: old.free_streams == 0)
    newer = await open_one(pair, wires, application)
    assert accepted(pair.far) == 2

    await exchange(client, server)  # what is under way is not disturbed
    client.end()
    assert await server.receive_all() == b""
    server.end()
    assert await client.ending() == "eof"
    assert code(await pair.near.journal.end()) == ""
    await until(lambda: old.is_closed)
    await until(lambda: accepted(pair.far) == 1)
    await exchange(*newer)


@pytest.mark.asyncio
async def test_second_goaway_ends_new_streams_only(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await open_one(pair, wires, application)
    pair.far.inbound.drain()
    pair.far.look_at_tunnels(2)  # a round trip later the final GOAWAY follows
    await exchange(client, server)
    assert not pair.near.journal.ends


@pytest.mark.asyncio
async def test_tunnel_ends_with_its_destination(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await open_one(pair, wires, application)
    (idle_key_tunnel,) = tunnels(pair.near)
    client.end()
    assert await server.receive_all() == b""
    server.end()
    assert await client.ending() == "eof"
    await pair.near.journal.end()
    assert tunnels(pair.near) == [idle_key_tunnel]
    del pair.workloads["server"]
    await pair.near.take(pair.snapshot())
    await until(lambda: tunnels(pair.near) == [])
    await until(lambda: accepted(pair.far) == 0)


@pytest.mark.asyncio
async def test_tunnel_is_not_used_for_the_next_owner_of_its_address(pair: Pair, wires: Wires) -> None:
    """The address went to a pod of another identity: what is under way goes on, new connections do not."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await open_one(pair, wires, application)
    pair.workloads["server"] = _with_account(pair.server, "somebody-else")
    await pair.near.take(pair.snapshot())  # the far node has not heard of it yet
    await exchange(client, server)
    late = await wires.dial(await pair.enter_server())
    assert await late.ending() == "reset"
    assert code(await pair.near.journal.end()) == "peer_identity_mismatch"
    assert application.accepted == 1


@pytest.mark.asyncio
async def test_idle_tunnel_is_closed(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start(pool=PoolLimits(idle_timeout=300), tunnel=TunnelSettings(ping_interval=1e9))
    client, server = await open_one(pair, wires, application)
    pair.near.look_at_tunnels(1000)
    assert len(tunnels(pair.near)) == 1  # in use
    await exchange(client, server)
    client.end()
    await server.receive_all()
    server.end()
    await pair.near.journal.end()
    pair.near.look_at_tunnels(290)
    assert len(tunnels(pair.near)) == 1
    pair.near.look_at_tunnels(301)
    await until(lambda: tunnels(pair.near) == [])
    await until(lambda: accepted(pair.far) == 0)
    assert pair.near.sample("ztun_connection_failures_total") == 0


@pytest.mark.asyncio
async def test_full_tunnel_gets_company_and_is_used_again(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start(tunnel=TunnelSettings(max_concurrent_streams=2))
    ends = [await open_one(pair, wires, application) for _ in range(5)]
    assert sorted(tunnel.stream_count for tunnel in tunnels(pair.near)) == [1, 2, 2]
    for client, server in ends[:2]:
        client.end()
        await server.receive_all()
        server.end()
    await pair.far.journal.until(pair.far.journal.ends, 2)
    for _ in range(3):
        await open_one(pair, wires, application)
    assert [tunnel.stream_count for tunnel in tunnels(pair.near)] == [2, 2, 2]
    assert pair.near.sample("ztun_pool_dials_total") == 3


@pytest.mark.asyncio
async def test_many_at_once_fill_tunnels_and_nobody_is_refused(pair: Pair, wires: Wires) -> None:
    application = await wires.echo(pair.server_ip, APP_PORT)
    await pair.start(tunnel=TunnelSettings(max_concurrent_streams=10))
    entry = await pair.enter_server()
    everybody = asyncio.Barrier(100)

    async def one() -> None:
        client = await wires.dial(entry)
        await client.send(b"x")
        assert await client.receive(1) == b"x"
        await everybody.wait()

    await asyncio.gather(*(one() for _ in range(100)))
    assert application.accepted == 100
    assert accepted(pair.far) == 10


@pytest.mark.asyncio
async def test_failed_dial_releases_all_who_wait_for_it(pair: Pair, wires: Wires) -> None:
    application = await wires.echo(pair.server_ip, APP_PORT)
    await pair.start("near")
    entry = await pair.enter_server()
    clients = [await wires.dial(entry) for _ in range(20)]
    assert [await client.ending() for client in clients] == ["reset"] * 20
    await pair.near.journal.until(pair.near.journal.ends, 20)
    assert {code(report) for report in pair.near.journal.ends} == {"connect_refused"}
    await pair.start("far")
    client = await wires.dial(entry)
    await client.send(b"x")
    assert await client.receive(1) == b"x"
    assert application.accepted == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("node", ["near", "far"])
async def test_lost_tunnel_resets_what_it_carried(pair: Pair, wires: Wires, node: str) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    ends = [await open_one(pair, wires, application) for _ in range(3)]
    if node == "near":
        tunnels(pair.near)[0].tls.abort()
    else:
        listener = only(pair.far.inbound._listeners.values())
        only(listener.tunnels).tls.abort()
    for client, server in ends:
        assert await client.ending() == "reset"
        assert await server.ending() == "reset"
    for proxy in (pair.near, pair.far):
        await proxy.journal.until(proxy.journal.ends, 3)
        assert {code(report) for report in proxy.journal.ends} == {"stream_reset"}
    await open_one(pair, wires, application)


@pytest.mark.asyncio
async def test_one_peer_cannot_have_tunnels_without_end(
    pair: Pair, wires: Wires, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood budgets are per tunnel: whoever may have any number of those has no budget."""
    monkeypatch.setattr("ztun.proxy.tunnels.MAX_TUNNELS_PER_PEER", 3)
    await wires.echo(pair.server_ip, APP_PORT)
    await pair.start()
    context = client_context(tmp_path, certificate(pair.ca.authority))
    other = client_context(tmp_path, certificate(pair.ca.authority, "other"))
    target = f"{pair.server_ip}:{APP_PORT}"

    async def serves(client: H2Client) -> bool:
        return (await client.answer(client.connect(target)))[":status"] == "200"

    here = pair.client.addresses[0]
    clients = [await H2Client.dial(wires, pair.server_ip, context, source=here) for _ in range(3)]
    assert all([await serves(client) for client in clients])
    await H2Client.dial(wires, pair.server_ip, context, source=here)
    refusal = await pair.far.journal.refusal()
    assert code(refusal) == "too_many_tunnels"
    assert accepted(pair.far) == 3
    assert await serves(await H2Client.dial(wires, pair.server_ip, other, source=here))
    elsewhere = pair.addresses.take()
    assert await serves(await H2Client.dial(wires, pair.server_ip, context, source=elsewhere))
    assert all([await serves(client) for client in clients]), "those that stand are left alone"
    clients[0].close()
    await until(lambda: accepted(pair.far) == 4)
    assert await serves(await H2Client.dial(wires, pair.server_ip, context, source=here))


@pytest.mark.asyncio
async def test_peer_that_no_longer_answers_is_given_up(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    """A dead peer looks like an orderly end to nobody: the application must not take it for one."""
    server = H2Server(wires, answer=answer_ok, pongs=False)
    await server.listen(pair.server_ip, server_context(tmp_path, certificate(pair.ca.authority, "server")))
    await pair.start("near")
    client = await wires.dial(await pair.enter_server())
    await client.send(b"echo")
    assert await client.receive(4) == b"echo"
    pair.near.look_at_tunnels(11)
    await server.seen(PingReceived)
    pair.near.look_at_tunnels(30)
    assert not pair.near.journal.ends
    pair.near.look_at_tunnels(32)
    report = await pair.near.journal.end()
    assert "no answer to PING" in str(report.error)
    assert await client.ending() == "reset"
    assert tunnels(pair.near) == []
    await server.seen(ConnectionTerminated)


@pytest.mark.asyncio
async def test_peer_that_answers_pings_is_kept(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    server = H2Server(wires, answer=answer_ok)
    await server.listen(pair.server_ip, server_context(tmp_path, certificate(pair.ca.authority, "server")))
    await pair.start("near")
    client = await wires.dial(await pair.enter_server())
    await client.send(b"echo")
    assert await client.receive(4) == b"echo"
    for number in range(1, 4):
        pair.near.look_at_tunnels(11)
        await server.seen(PingReceived, number)
        await client.send(b"echo")
        assert await client.receive(4) == b"echo"
    assert len(tunnels(pair.near)) == 1


@pytest.mark.asyncio
async def test_goaway_in_mid_transfer(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    """A foreign server says goodbye while bytes flow; they keep flowing, and the next one goes elsewhere."""
    server = H2Server(wires, answer=answer_ok)
    await server.listen(pair.server_ip, server_context(tmp_path, certificate(pair.ca.authority, "server")))
    await pair.start("near")
    entry = await pair.enter_server()
    client = await wires.dial(entry)
    await client.send(b"before")
    assert await client.receive(6) == b"before"
    connection, writer = server.connections[0]
    say_goodbye(connection, last_stream=1)
    writer.write(connection.data_to_send())
    (tunnel,) = tunnels(pair.near)
    await until(lambda: tunnel.free_streams == 0)
    await client.send(b"after!")
    assert await client.receive(6) == b"after!"
    second = await wires.dial(entry)
    await second.send(b"second")
    assert await second.receive(6) == b"second"
    assert len(server.connections) == 2


def say_goodbye(connection: H2Connection, *, last_stream: int) -> None:
    """GOAWAY as bytes: ``h2`` itself refuses to go on after one."""
    connection._data_to_send += goaway(last_stream, 0)


@pytest.mark.asyncio
async def test_tunnels_to_who_has_no_address_outlive_a_reload(pair: Pair, wires: Wires) -> None:
    """A workload known by name only, and one with the address of its node, are not found by address."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    await open_one(pair, wires, application)
    pair.workloads["server"] = replace(pair.server, host_network=True)
    await pair.apply()
    assert len(tunnels(pair.near)) == 1
    assert not tunnels(pair.near)[0].connection.draining  # type: ignore[union-attr]
    pair.workloads["server"] = replace(pair.server, addresses=(), hostname="server.example.com")
    await pair.apply()
    assert not tunnels(pair.near)[0].connection.draining  # type: ignore[union-attr]
    pair.workloads["server"] = replace(pair.server, host_network=True, service_account="other")
    await pair.apply()
    assert all(one.connection.draining for one in tunnels(pair.near))  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_a_set_up_that_is_cancelled_before_it_began_cleans_up(pair: Pair) -> None:
    await pair.start("near")
    done: list[str] = []

    async def set_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("cleaned up")

    pair.near.plane.home.spawn(set_up())
    await pair.near.plane.home.stop_tasks()
    assert done == ["cleaned up"]
