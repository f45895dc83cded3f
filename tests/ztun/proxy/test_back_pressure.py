"""A reader that does not read stops its sender, and nobody else; the proxies hold no more than the windows say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.mesh import APP_PORT, Node, Pair, only, until
from tests.ztun.proxy.test_exchange import PIECE, pull
from ztun.hbone.settings import TunnelSettings
from ztun.net.app_socket import HELD_BYTES, AppSocket
from ztun.net.buffers import APP_READ_BYTES
from ztun.net.relay import Relay
from ztun.net.tls import CONGESTED_BYTES

pytestmark = pytest.mark.net

KIB = 1024
MIB = 1024 * KIB
STILL_TURNS = 2000
ENDLESS_BYTES = 512 * MIB
SMALL_WINDOW = TunnelSettings(stream_window=256 * KIB, connection_window=1 * MIB)


async def push_forever(wire: Wire) -> None:
    for _ in range(ENDLESS_BYTES // len(PIECE)):
        await wire.send(PIECE)


async def relay_of(node: Node) -> Relay:
    """The relay of the only connection of a proxy, once it stands."""
    connection = only(node.plane.connections)
    await until(lambda: connection.relay is not None)
    assert connection.relay is not None
    return connection.relay


def queued(sock: object) -> int:
    """What the kernel has not taken of a socket's bytes."""
    assert isinstance(sock, AppSocket)
    return sock.queued


async def standstill(look: Callable[[], object]) -> None:
    """Wait until many turns of the loop change nothing."""
    seen, turns = look(), 0
    while turns < STILL_TURNS:
        await asyncio.sleep(0)
        now = look()
        seen, turns = now, turns + 1 if now == seen else 0


def small_buffers(wire: Wire) -> None:
    """Leave the kernel little room, so that a stall comes soon."""
    sock: socket.socket = wire.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)


@pytest.mark.asyncio
@pytest.mark.parametrize("settings", [TunnelSettings(), SMALL_WINDOW], ids=["defaults", "small"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_sender_is_stopped_by_a_reader_that_does_not_read(
    pair: Pair, wires: Wires, direction: str, settings: TunnelSettings
) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start(tunnel=settings)
    client = await wires.dial(await pair.enter_server())
    server = await application.accept()
    sender, reader = (client, server) if direction == "up" else (server, client)
    small_buffers(sender)
    small_buffers(reader)
    near = await relay_of(pair.near)
    far = await relay_of(pair.far)
    entering, leaving = (near, far) if direction == "up" else (far, near)
    stream = entering.server if direction == "up" else entering.client
    sink = leaving.server if direction == "up" else leaving.client
    assert not isinstance(stream, AppSocket)
    assert isinstance(sink, AppSocket)

    sending = asyncio.create_task(push_forever(sender))
    # the reader's proxy gives no more credit, and the sender cannot get rid of anything
    await until(lambda: stream.send_window == 0 and queued(sink) > HELD_BYTES)
    await standstill(lambda: (entering.bytes_up, entering.bytes_down, queued(sink)))
    assert sender.writer.transport.get_write_buffer_size() > 0
    taken = entering.bytes_up if direction == "up" else entering.bytes_down
    held = taken - (sink.bytes_written - queued(sink))
    assert HELD_BYTES < held <= settings.stream_window + HELD_BYTES + APP_READ_BYTES
    assert stream.backlog_bytes <= APP_READ_BYTES
    assert not sending.done()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    # what was sent arrives once somebody reads
    sender.end()
    count, _ = await pull(reader)
    assert count == (entering.bytes_up if direction == "up" else entering.bytes_down) >= taken


@pytest.mark.asyncio
async def test_stalled_streams_do_not_stop_others_of_their_tunnel(pair: Pair, wires: Wires) -> None:
    """Six full stream windows are more than the connection window of the tunnel that all of them share."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    entry = await pair.enter_server()
    senders = []
    for number in range(6):
        client = await wires.dial(entry)
        await application.accept()
        senders.append(asyncio.create_task(push_forever(client)))
        await until(
            lambda number=number: (  # type: ignore[misc]
                sum(stream.send_window == 0 for stream in streams(pair)) == number + 1
            )
        )
    client = await wires.dial(entry)
    server = await application.accept()
    for _ in range(100):
        await client.send(b"question")
        assert await server.receive(8) == b"question"
        await server.send(b"answer")
        assert await client.receive(6) == b"answer"
    assert pair.near.sample("ztun_pool_dials_total") == 1
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)


def streams(pair: Pair) -> list:  # type: ignore[type-arg]
    _, tunnel = only(pair.near.plane.home.pool.tunnels())
    assert tunnel.connection is not None
    return list(tunnel.connection.streams.values())


@pytest.mark.asyncio
async def test_slow_reader_gets_everything(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start(tunnel=SMALL_WINDOW)
    client = await wires.dial(await pair.enter_server())
    server = await application.accept()
    small_buffers(server)

    async def read_slowly() -> int:
        count = 0
        while data := await server.reader.read(16 * KIB):
            count += len(data)
            for _ in range(3):
                await asyncio.sleep(0)
        return count

    async def send() -> None:
        for _ in range(32):
            await client.send(PIECE)
        client.end()

    count, _ = await asyncio.gather(read_slowly(), send())
    assert count == 32 * len(PIECE)


def test_bounds_are_what_these_tests_think() -> None:
    """A change of these is a change of how much memory a slow reader costs."""
    assert (HELD_BYTES, CONGESTED_BYTES) == (256 * KIB, 512 * KIB)
