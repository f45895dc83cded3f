"""Bytes, ends and resets from a client's socket to a server's, through two node proxies."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.events import DataReceived, StreamEnded

from tests.certs.handshake import certificate
from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Pair, until
from tests.ztun.proxy.rogue import H2Server, answer_and_end, server_context
from ztun.hbone.stream import TunnelStream
from ztun.net.app_socket import AppSocket
from ztun.net.relay import Relay
from ztun.proxy.connections import LiveConnection

pytestmark = pytest.mark.net

MIB = 1024 * 1024
BULK_BYTES = 64 * MIB
PIECE = bytes(range(256)) * 1024


async def connect(pair: Pair, wires: Wires) -> tuple[Wire, Wire]:
    """The client's and the server's end of one connection through the mesh."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client = await wires.dial(await pair.enter_server())
    return client, await application.accept()


@pytest.mark.asyncio
async def test_bytes_arrive_in_both_directions(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    await client.send(b"ping")
    assert await server.receive(4) == b"ping"
    await server.send(b"pong!")
    assert await client.receive(5) == b"pong!"


@pytest.mark.asyncio
async def test_application_sees_the_address_of_the_client_pod(pair: Pair, wires: Wires) -> None:
    _, server = await connect(pair, wires)
    assert server.peer[0] == pair.client.addresses[0]


@pytest.mark.asyncio
async def test_server_may_speak_first(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    await server.send(b"220 ready\r\n")
    assert await client.receive(11) == b"220 ready\r\n"


@pytest.mark.asyncio
async def test_client_ends_first_and_still_receives(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    await client.send(b"question")
    client.end()
    assert await server.receive_all() == b"question"
    await server.send(b"answer")
    assert await client.receive(6) == b"answer"
    assert len(pair.near.plane.connections) == len(pair.far.plane.connections) == 1
    server.end()
    assert await client.ending() == "eof"
    assert code(await pair.near.journal.end()) == ""
    assert code(await pair.far.journal.end()) == ""


@pytest.mark.asyncio
async def test_server_ends_first_and_still_receives(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    await server.send(b"bye")
    server.end()
    assert await client.receive_all() == b"bye"
    await client.send(b"one more thing")
    assert await server.receive(14) == b"one more thing"
    client.end()
    assert await server.ending() == "eof"
    assert code(await pair.near.journal.end()) == ""
    assert code(await pair.far.journal.end()) == ""


@pytest.mark.asyncio
async def test_server_behind_a_proxy_that_is_not_ours_ends_first(
    pair: Pair, wires: Wires, tmp_path: Path
) -> None:
    """The terminator is the ``h2`` package: Envoy as one cannot leave the client's direction open."""
    terminator = H2Server(wires, answer=answer_and_end, echo=False)
    context = server_context(tmp_path, certificate(pair.ca.authority, "server"))
    await terminator.listen(pair.server_ip, context)
    await pair.start("near")
    client = await wires.dial(await pair.enter_server())
    assert await client.receive_all() == b"bye"
    for number in range(3):
        await client.send(b"one more thing")
        await terminator.seen(DataReceived, number + 1)
    client.end()
    await terminator.seen(StreamEnded)
    received = [one for one in terminator.events if isinstance(one, DataReceived)]
    assert b"".join(one.data or b"" for one in received) == b"one more thing" * 3
    assert code(await pair.near.journal.end()) == ""


@pytest.mark.asyncio
async def test_reset_of_the_client_reaches_the_server(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    await client.send(b"x")
    await server.receive(1)
    client.reset()
    assert await server.ending() == "reset"
    assert code(await pair.near.journal.end()) == "connection_reset"
    assert code(await pair.far.journal.end()) == "stream_reset"


@pytest.mark.asyncio
async def test_reset_of_the_server_reaches_the_client(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    await server.send(b"x")
    await client.receive(1)
    server.reset()
    assert await client.ending() == "reset"
    assert code(await pair.near.journal.end()) == "stream_reset"
    assert code(await pair.far.journal.end()) == "connection_reset"


@pytest.mark.asyncio
@pytest.mark.parametrize("who", ["client", "server"])
async def test_reset_after_the_other_side_has_ended_is_still_a_reset(
    pair: Pair, wires: Wires, who: str
) -> None:
    client, server = await connect(pair, wires)
    first, second = (server, client) if who == "client" else (client, server)
    first.end()
    assert await second.receive_all() == b""
    second.reset()
    assert await first.ending() == "reset"


@pytest.mark.asyncio
async def test_nothing_listens_at_the_destination(pair: Pair, wires: Wires) -> None:
    await pair.start()
    client = await wires.dial(await pair.enter_server())
    assert await client.ending() == "reset"
    assert code(await pair.near.journal.end()) == "http_status_503"
    assert code(await pair.far.journal.end()) == "connect_refused"


@pytest.mark.asyncio
async def test_bytes_sent_before_the_tunnel_is_up_arrive(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client = await wires.dial(await pair.enter_server())
    early = PIECE * 8
    client.writer.write(early)
    server = await application.accept()
    assert await server.receive(len(early)) == early


@pytest.mark.asyncio
async def test_client_that_sends_and_closes_at_once_is_heard(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    for _ in range(3):  # over a fresh tunnel, then over the pooled one
        client = await wires.dial(await pair.enter_server())
        client.writer.write(b"fire and forget")
        client.writer.close()
        server = await application.accept()
        assert await server.receive_all() == b"fire and forget"


@pytest.mark.asyncio
async def test_client_that_connects_and_resets_at_once_leaves_nothing(pair: Pair, wires: Wires) -> None:
    await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client = await wires.dial(await pair.enter_server())
    client.reset()
    assert code(await pair.near.journal.end()) != ""
    assert len(pair.near.plane.connections) == 0


async def push(wire: Wire, count: int) -> str:
    digest = hashlib.sha256()
    for _ in range(count // len(PIECE)):
        digest.update(PIECE)
        await wire.send(PIECE)
    wire.end()
    return digest.hexdigest()


async def pull(wire: Wire) -> tuple[int, str]:
    count, digest = 0, hashlib.sha256()
    while data := await wire.reader.read(MIB):
        count += len(data)
        digest.update(data)
    return count, digest.hexdigest()


@pytest.mark.asyncio
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_bulk_arrives_byte_for_byte(pair: Pair, wires: Wires, direction: str) -> None:
    client, server = await connect(pair, wires)
    sender, receiver = (client, server) if direction == "up" else (server, client)
    sent, received = await asyncio.gather(push(sender, BULK_BYTES), pull(receiver))
    assert received == (BULK_BYTES, sent)


@pytest.mark.asyncio
async def test_bulk_in_both_directions_at_once(pair: Pair, wires: Wires) -> None:
    client, server = await connect(pair, wires)
    size = 16 * MIB
    up, down, at_server, at_client = await asyncio.gather(
        push(client, size), push(server, size), pull(server), pull(client)
    )
    assert (at_server, at_client) == ((size, up), (size, down))
    near = await pair.near.journal.end()
    assert (near.bytes_sent, near.bytes_recv) == (size, size)


@pytest.mark.asyncio
async def test_five_hundred_streams_at_once(pair: Pair, wires: Wires) -> None:
    await wires.echo(pair.server_ip, APP_PORT)
    await pair.start()
    entry = await pair.enter_server()
    everybody = asyncio.Barrier(500)

    async def exchange(number: int) -> bytes:
        client = await wires.dial(entry)
        text = b"%06d" % number
        await client.send(text)
        assert await client.receive(6) == text
        await everybody.wait()  # all are open now
        await client.send(text)
        client.end()
        return await client.receive_all()

    answers = await asyncio.gather(*(exchange(number) for number in range(500)))
    assert answers == [b"%06d" % number for number in range(500)]
    await pair.near.journal.until(pair.near.journal.ends, 500)
    await pair.far.journal.until(pair.far.journal.ends, 500)
    assert {code(one) for one in (*pair.near.journal.ends, *pair.far.journal.ends)} == {""}
    assert pair.near.sample("ztun_pool_dials_total") < 10


@pytest.mark.asyncio
async def test_a_connection_that_ended_leaves_nothing_to_the_collector(pair: Pair, wires: Wires) -> None:
    """Its objects go with the last reference; in cycles they would pile up between collections."""
    gc.collect()
    earlier = list(parts())  # what a failed test has left; held, so that their addresses are nobody else's
    known = set(map(id, earlier))

    def ours() -> Counter[type]:
        return Counter(type(one) for one in parts() if id(one) not in known)

    client, server = await connect(pair, wires)
    await until(lambda: ours() == {LiveConnection: 2, Relay: 2, TunnelStream: 2, AppSocket: 2})
    gc.disable()
    try:
        client.end()
        assert await server.receive_all() == b""
        server.end()
        assert await client.ending() == "eof"
        for proxy in (pair.near, pair.far):
            await proxy.journal.end()
        await until(lambda: not ours())
    finally:
        gc.enable()


def parts() -> Iterator[object]:
    """What connections are made of, as far as it is still in memory."""
    kinds = (LiveConnection, Relay, TunnelStream, AppSocket)
    return (one for one in gc.get_objects() if type(one) in kinds)
