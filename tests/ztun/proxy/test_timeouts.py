"""Every stage of a connection has a limit, and a peer that stalls there is named for it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.certs.handshake import certificate
from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.backlog import FullBacklog
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Pair, until
from tests.ztun.proxy.rogue import H2Client, H2Server, RogueServer, client_context, server_context
from ztun.config import ConnectionTimeouts
from ztun.errors import NetworkPolicySuspected
from ztun.mesh.model import HBONE_PORT
from ztun.net.relay import Relay
from ztun.net.tunnel import TunnelTimeouts
from ztun.telemetry.access_log import ConnectionReport

pytestmark = pytest.mark.net

SHORT_SECONDS = 0.1
LAST_BYTES = 3 << 20  # less than a stream's window: the server is done while the client has hardly begun
SMALL_WINDOW_BYTES = 16_384
READ_BYTES = 65_536


async def failed_connection(pair: Pair, wires: Wires, timeouts: TunnelTimeouts) -> ConnectionReport:
    """Start the client's proxy, connect, and give the record of the failure."""
    await pair.start("near", tunnel_timeouts=timeouts)
    client = await wires.dial(await pair.enter_server())
    client.writer.write(b"hello")
    assert await client.ending() == "reset"
    return await pair.near.journal.end()


@pytest.mark.asyncio
async def test_destination_proxy_does_not_answer_at_all(pair: Pair, wires: Wires) -> None:
    async with FullBacklog(pair.server_ip, HBONE_PORT):
        report = await failed_connection(pair, wires, TunnelTimeouts(connect=SHORT_SECONDS))
    assert isinstance(report.error, NetworkPolicySuspected)
    assert (report.error.code, report.error.flag) == ("connect_timeout", "NETWORK_POLICY")
    assert "maybe a NetworkPolicy is blocking HBONE port 15008" in str(report.error)


@pytest.mark.asyncio
async def test_plain_destination_does_not_answer_at_all(pair: Pair, wires: Wires) -> None:
    stranger = pair.addresses.take()
    async with FullBacklog(stranger, APP_PORT):
        await pair.start("near", tunnel_timeouts=TunnelTimeouts(connect=SHORT_SECONDS))
        client = await wires.dial(await pair.enter(pair.client, stranger))
        assert await client.ending() == "reset"
        report = await pair.near.journal.end()
    assert report.error is not None
    assert (report.error.code, report.error.flag) == ("connect_timeout", "CONNECT")


@pytest.mark.asyncio
async def test_destination_proxy_is_silent_in_the_tls_handshake(pair: Pair, wires: Wires) -> None:
    silent = RogueServer(wires)
    await silent.listen(pair.server_ip, None)
    report = await failed_connection(pair, wires, TunnelTimeouts(tls_handshake=SHORT_SECONDS))
    assert report.error is not None
    assert (report.error.code, report.error.flag) == ("tls_timeout", "TLS_FAILURE")
    assert pair.near.sample("ztun_handshake_failures_total", role="client", code="tls_timeout") == 1


@pytest.mark.asyncio
async def test_destination_proxy_is_silent_in_http2(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    silent = RogueServer(wires)
    context = server_context(tmp_path, certificate(pair.ca.authority, "server"))
    await silent.listen(pair.server_ip, context)
    report = await failed_connection(pair, wires, TunnelTimeouts(h2_preface=SHORT_SECONDS))
    assert report.error is not None
    assert (report.error.code, report.error.flag) == ("h2_preface_timeout", "H2_HANDSHAKE_FAILURE")


@pytest.mark.asyncio
async def test_destination_proxy_does_not_answer_connect(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    silent = H2Server(wires)
    context = server_context(tmp_path, certificate(pair.ca.authority, "server"))
    await silent.listen(pair.server_ip, context)
    report = await failed_connection(pair, wires, TunnelTimeouts(connect_response=SHORT_SECONDS))
    assert code(report) == "connect_response_timeout"
    assert (report.bytes_sent, report.bytes_recv) == (0, 0)


@pytest.mark.asyncio
async def test_application_does_not_answer(pair: Pair, wires: Wires) -> None:
    """The destination's proxy gives up its dial, and says so to the client's."""
    async with FullBacklog(pair.server_ip, APP_PORT):
        await pair.start("far", tunnel_timeouts=TunnelTimeouts(connect=SHORT_SECONDS))
        report = await failed_connection(pair, wires, TunnelTimeouts())
        assert code(report) == "http_status_503"
        assert code(await pair.far.journal.end()) == "connect_timeout"


@pytest.mark.asyncio
async def test_client_gives_up_before_the_application_answers(pair: Pair, wires: Wires) -> None:
    async with FullBacklog(pair.server_ip, APP_PORT) as application:
        await pair.start("far")
        report = await failed_connection(pair, wires, TunnelTimeouts(connect_response=SHORT_SECONDS))
        assert code(report) == "connect_response_timeout"
        connection = await application.relent()
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        with pytest.raises(ConnectionResetError):
            while await loop.sock_recv(connection, 1024):
                pass
        connection.close()
        assert code(await pair.far.journal.end()) != ""


async def abandoned(pair: Pair, wire: Wire) -> ConnectionReport:
    assert await wire.ending() in ("eof", "reset")
    return await pair.far.journal.refusal()


@pytest.mark.asyncio
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02"], ids=["nothing", "half a record"])
async def test_peer_is_silent_in_the_tls_handshake(pair: Pair, wires: Wires, said: bytes) -> None:
    timeouts = TunnelTimeouts(tls_handshake=SHORT_SECONDS / 2, h2_preface=SHORT_SECONDS / 2)
    await pair.start("far", tunnel_timeouts=timeouts)
    peer = await wires.dial((pair.server_ip, HBONE_PORT))
    peer.writer.write(said)
    report = await abandoned(pair, peer)
    assert code(report) == "tls_timeout"
    assert pair.far.sample("ztun_handshake_failures_total", role="server", code="tls_timeout") == 1
    assert pair.far.sample("istio_tcp_sockets_open", reporter="destination") == 0


@pytest.mark.asyncio
async def test_silent_peers_are_so_many_and_no_more(
    pair: Pair, wires: Wires, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has not shown a certificate costs memory, so the oldest make room; whoever has is not counted."""
    monkeypatch.setattr("ztun.proxy.tunnels.MAX_HANDSHAKES", 3)
    await wires.echo(pair.server_ip, APP_PORT)
    await pair.start("far")
    context = client_context(tmp_path, certificate(pair.ca.authority))
    known = [await H2Client.dial(wires, pair.server_ip, context) for _ in range(5)]
    silent = [await wires.dial((pair.server_ip, HBONE_PORT)) for _ in range(3)]
    await until(lambda: pair.far.sample("istio_tcp_sockets_open", reporter="destination") == 8)
    for number in range(2):
        silent.append(await wires.dial((pair.server_ip, HBONE_PORT)))
        assert await silent[number].ending() in ("eof", "reset")
        assert code(await pair.far.journal.refusal(number + 1)) == "too_many_handshakes"
    for client in known:
        assert (await client.answer(client.connect(f"{pair.server_ip}:{APP_PORT}")))[":status"] == "200"
    again = await H2Client.dial(wires, pair.server_ip, context)
    assert (await again.answer(again.connect(f"{pair.server_ip}:{APP_PORT}")))[":status"] == "200"


@pytest.mark.asyncio
async def test_peer_is_silent_in_http2(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    timeouts = TunnelTimeouts(tls_handshake=SHORT_SECONDS / 2, h2_preface=SHORT_SECONDS / 2)
    await pair.start("far", tunnel_timeouts=timeouts)
    context = client_context(tmp_path, certificate(pair.ca.authority))
    reader, writer = await asyncio.open_connection(pair.server_ip, HBONE_PORT, ssl=context)
    peer = wires.keep(Wire(reader, writer))
    report = await abandoned(pair, peer)
    assert code(report) == "h2_preface_timeout"
    assert pair.far.sample("ztun_tunnels_open", role="server") == 0


@pytest.mark.asyncio
async def test_pod_that_the_mesh_does_not_know(pair: Pair, wires: Wires) -> None:
    await pair.start("near", timeouts=ConnectionTimeouts(source_workload=SHORT_SECONDS))
    del pair.workloads["client"]
    entry = await pair.enter_server()
    await pair.apply()
    client = await wires.dial(entry)
    assert await client.ending() == "reset"
    assert code(await pair.near.journal.refusal()) == "unknown_source"
    assert pair.near.sample("istio_tcp_connections_opened_total") == 0


@pytest.mark.asyncio
async def test_pod_that_becomes_known_in_time(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    entry = await pair.enter_server()
    known = pair.workloads.pop("client")
    await pair.apply()
    client = await wires.dial(entry)
    await client.send(b"early")
    pair.workloads["client"] = known
    await pair.apply()
    assert await (await application.accept()).receive(5) == b"early"


async def standing(pair: Pair, wires: Wires, timeouts: ConnectionTimeouts) -> tuple[Wire, Wire]:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start(timeouts=timeouts)
    client = await wires.dial(await pair.enter_server())
    server = await application.accept()
    await exchange(client, server)
    return client, server


async def exchange(here: Wire, there: Wire) -> None:
    await here.send(b"x")
    assert await there.receive(1) == b"x"


@pytest.mark.asyncio
@pytest.mark.parametrize("node", ["near", "far"])
@pytest.mark.parametrize("first", ["client", "server"])
async def test_half_closed_and_silent(pair: Pair, wires: Wires, node: str, first: str) -> None:
    client, server = await standing(pair, wires, ConnectionTimeouts(half_closed=45))
    here, there = (client, server) if first == "client" else (server, client)
    here.end()
    assert await there.receive_all() == b""
    proxy = pair.nodes[node]
    proxy.look_at_connections(1)
    assert proxy.plane.connections.half_closed()[0] == 1
    proxy.look_at_connections(40)
    await exchange(there, here)
    proxy.look_at_connections(44)  # progress begins the time anew
    proxy.look_at_connections(88)
    assert not proxy.journal.ends
    await exchange(there, here)
    proxy.look_at_connections(89)
    proxy.look_at_connections(135)
    assert code(await proxy.journal.end()) == "half_closed_timeout"
    assert await here.ending() == "reset"
    proxy.look_at_connections(136)
    assert proxy.plane.connections.half_closed()[0] == 0


@pytest.mark.asyncio
async def test_idle(pair: Pair, wires: Wires) -> None:
    client, server = await standing(pair, wires, ConnectionTimeouts(idle=60))
    pair.near.look_at_connections(1)
    await exchange(server, client)
    pair.near.look_at_connections(59)
    pair.near.look_at_connections(118)
    assert not pair.near.journal.ends
    pair.near.look_at_connections(120)
    assert code(await pair.near.journal.end()) == "idle_timeout"
    assert await client.ending() == "eof"
    assert await server.ending() == "eof"


@pytest.mark.asyncio
async def test_idle_connections_stay_by_default(pair: Pair, wires: Wires) -> None:
    client, server = await standing(pair, wires, ConnectionTimeouts())
    pair.near.look_at_connections(1e6)
    pair.far.look_at_connections(1e6)
    await exchange(client, server)


async def leaving(pair: Pair, wires: Wires, timeouts: ConnectionTimeouts) -> tuple[Wire, Relay]:
    """A client with a small window whose server has said a lot and ended; the client's proxy holds the rest."""
    client, server = await standing(pair, wires, timeouts)
    sock: socket.socket = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW_BYTES)
    sending = asyncio.create_task(server.send(bytes(LAST_BYTES)))
    (connection,) = pair.near.plane.connections
    relay = connection.relay
    assert relay is not None
    await sending
    server.end()
    await until(lambda: relay.half_closed)
    return client, relay


@pytest.mark.asyncio
@pytest.mark.parametrize("timeouts", [ConnectionTimeouts(half_closed=45), ConnectionTimeouts(idle=45)])
async def test_who_reads_the_last_bytes_slowly_gets_all_of_them(
    pair: Pair, wires: Wires, timeouts: ConnectionTimeouts
) -> None:
    client, relay = await leaving(pair, wires, timeouts)

    def taken() -> int:
        return relay.bytes_delivered - relay.bytes_unacknowledged

    seconds, received = 1.0, 0
    pair.near.look_at_connections(seconds)
    while taken() < LAST_BYTES:
        before = taken()
        while taken() == before:
            received += len(await client.receive(min(READ_BYTES, LAST_BYTES - received)))
            await asyncio.sleep(0)
        seconds += 40
        pair.near.look_at_connections(seconds)
        assert not pair.near.journal.ends
    assert seconds > 5 * 45
    assert len(await client.receive(LAST_BYTES - received)) == LAST_BYTES - received
    client.end()
    assert await client.ending() == "eof"
    assert code(await pair.near.journal.end()) == ""


@pytest.mark.asyncio
async def test_who_does_not_read_the_last_bytes_is_given_up(pair: Pair, wires: Wires) -> None:
    await leaving(pair, wires, ConnectionTimeouts(half_closed=45))
    for seconds in (1, 47, 93):
        assert not pair.near.journal.ends
        pair.near.look_at_connections(seconds)
    assert code(await pair.near.journal.end()) == "half_closed_timeout"
