"""Bytes, ends, resets and back-pressure from one tunnel to another."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from tests.waypoint.server.mesh import WaypointMesh
from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, only, until
from tests.ztun.proxy.test_back_pressure import SMALL_WINDOW, push_forever, small_buffers, standstill
from tests.ztun.proxy.test_exchange import PIECE, pull
from ztun.hbone.settings import TunnelSettings
from ztun.hbone.stream import TunnelStream
from ztun.net.relay import Relay

pytestmark = pytest.mark.net

MIB = 1024 * 1024
BULK_BYTES = 32 * MIB


async def connect(mesh: WaypointMesh, wires: Wires, **settings: object) -> tuple[Wire, Wire]:
    """The client's and the server's end of one connection through the waypoint."""
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run(**settings)
    client = await wires.dial(await mesh.enter_service())
    return client, await application.accept()


async def relay(mesh: WaypointMesh) -> Relay:
    """The waypoint's relay of its only connection."""
    connection = only(mesh.waypoint.plane.connections)
    await until(lambda: connection.relay is not None)
    assert connection.relay is not None
    return connection.relay


async def ends(mesh: WaypointMesh) -> list[str]:
    """With which code the connection ended at each proxy on the way."""
    journals = (mesh.near.journal, mesh.waypoint.journal, mesh.far.journal)
    return [code(await journal.end()) for journal in journals]


@pytest.mark.asyncio
async def test_both_ends_are_streams_and_bytes_pass_both_ways(mesh: WaypointMesh, wires: Wires) -> None:
    client, server = await connect(mesh, wires)
    await client.send(b"ping")
    assert await server.receive(4) == b"ping"
    await server.send(b"pong!")
    assert await client.receive(5) == b"pong!"
    joined = await relay(mesh)
    assert isinstance(joined.client, TunnelStream)
    assert isinstance(joined.server, TunnelStream)
    assert (joined.bytes_up, joined.bytes_down) == (4, 5)


@pytest.mark.asyncio
@pytest.mark.parametrize("first", ["client", "server"])
async def test_either_side_ends_first_and_still_receives(
    mesh: WaypointMesh, wires: Wires, first: str
) -> None:
    client, server = await connect(mesh, wires)
    one, other = (client, server) if first == "client" else (server, client)
    await one.send(b"question")
    one.end()
    assert await other.receive_all() == b"question"
    assert (await relay(mesh)).half_closed
    await other.send(b"answer")
    assert await one.receive(6) == b"answer"
    other.end()
    assert await one.ending() == "eof"
    assert await ends(mesh) == ["", "", ""]


@pytest.mark.asyncio
async def test_server_that_greets_and_leaves_at_once_is_heard(mesh: WaypointMesh, wires: Wires) -> None:
    application = await wires.application(mesh.server.addresses[0], APP_PORT)
    await mesh.run()
    entry = await mesh.enter_service()
    for _ in range(20):
        client = await wires.dial(entry)
        server = await application.accept()
        server.writer.write(b"220 ready\r\n")
        server.writer.close()
        assert await client.receive_all() == b"220 ready\r\n"
        client.end()


@pytest.mark.asyncio
@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_travels_through(mesh: WaypointMesh, wires: Wires, who: str) -> None:
    client, server = await connect(mesh, wires)
    one, other = (client, server) if who == "client" else (server, client)
    await one.send(b"x")
    await other.receive(1)
    one.reset()
    assert await other.ending() == "reset"
    assert (await ends(mesh))[1] == "stream_reset"


@pytest.mark.asyncio
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_bulk_is_byte_exact(mesh: WaypointMesh, wires: Wires, direction: str) -> None:
    client, server = await connect(mesh, wires)
    sender, reader = (client, server) if direction == "up" else (server, client)

    async def push() -> None:
        for _ in range(BULK_BYTES // len(PIECE)):
            await sender.send(PIECE)
        sender.end()

    _, (count, digest) = await asyncio.gather(push(), pull(reader))
    assert count == BULK_BYTES
    expected = hashlib.sha256(PIECE * (BULK_BYTES // len(PIECE)))
    assert digest == expected.hexdigest()


@pytest.mark.asyncio
@pytest.mark.parametrize("settings", [TunnelSettings(), SMALL_WINDOW], ids=["defaults", "small"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_reader_that_does_not_read_stops_its_sender(
    mesh: WaypointMesh, wires: Wires, direction: str, settings: TunnelSettings
) -> None:
    client, server = await connect(mesh, wires, tunnel=settings)
    sender, reader = (client, server) if direction == "up" else (server, client)
    small_buffers(sender)
    small_buffers(reader)
    joined = await relay(mesh)
    entering, leaving = (
        (joined.client, joined.server) if direction == "up" else (joined.server, joined.client)
    )
    assert isinstance(entering, TunnelStream)
    assert isinstance(leaving, TunnelStream)
    sending = asyncio.create_task(push_forever(sender))
    # the onward tunnel takes nothing more, so the one that bytes come from is given no more credit
    await until(lambda: leaving.send_window == 0 and entering.held > 0)
    await standstill(lambda: (joined.bytes_up, joined.bytes_down, leaving.backlog_bytes))
    assert leaving.backlog_bytes <= settings.stream_window
    assert entering.held <= settings.stream_window
    assert not sending.done()
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    sender.end()
    count, _ = await pull(reader)
    assert count == (joined.bytes_up if direction == "up" else joined.bytes_down)
    # what was held is delivered, also behind the last byte: the tunnel's credit must not shrink for ever
    await until(lambda: entering.held == 0)
    assert entering.connection.held == 0
