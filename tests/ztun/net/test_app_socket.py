"""One application's socket: what it reads, what it holds, and how it ends."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from tests.ztun.net.ends import Ends
from tests.ztun.proxy.mesh import until
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import EARLY_BYTES, HELD_BYTES

pytestmark = pytest.mark.net


@pytest.mark.asyncio
async def test_what_came_before_the_start_is_not_lost(ends: Ends) -> None:
    await ends.theirs.send(b"early")
    ends.theirs.end()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not ends.other.data
    assert len(ends.ours._early) <= EARLY_BYTES
    ends.start()
    await until(lambda: ends.other.ended)
    assert ends.other.data == b"early"


@pytest.mark.asyncio
async def test_reading_stops_when_the_sink_is_full_and_goes_on_when_it_drains(ends: Ends) -> None:
    ends.other.space = 100_000
    ends.start()
    ends.theirs.writer.write(b"x" * 1_000_000)
    await until(lambda: len(ends.other.data) >= 100_000)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(ends.other.data) == 100_000  # it reads no more than there was room for
    ends.other.space = 1 << 30
    ends.ours.sink_drained()
    await until(lambda: len(ends.other.data) == 1_000_000)


@pytest.mark.asyncio
async def test_source_is_told_to_stop_and_to_go_on(ends: Ends) -> None:
    ends.start()
    piece = memoryview(bytes(64 * 1024))
    taken = 0
    while ends.ours.offer(piece):
        taken += len(piece)
        assert taken < 64 * 1024 * 1024
    assert ends.ours.room() == 0
    assert ends.ours.queued <= HELD_BYTES + len(piece)
    assert ends.other.drained == 0
    reading = asyncio.create_task(ends.theirs.receive(taken))
    await until(lambda: ends.other.drained == 1)
    assert ends.ours.room() > 0
    await reading


@pytest.mark.asyncio
async def test_end_travels_behind_what_is_queued(ends: Ends) -> None:
    ends.start()
    total = 0
    while ends.ours.offer(memoryview(bytes(256 * 1024))):
        total += 256 * 1024
    total += 256 * 1024
    ends.ours.offer_end()
    ends.ours.offer_end()
    assert len(await ends.theirs.receive_all()) == total
    ends.theirs.end()
    await until(lambda: ends.other.closed == [None])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (ErrorCode.NO_ERROR, "eof"),
        (ErrorCode.CANCEL, "reset"),
        (ErrorCode.CONNECT_ERROR, "reset"),
        (ErrorCode.INTERNAL_ERROR, "reset"),
    ],
)
async def test_abort_looks_to_the_application_like_what_it_is(
    ends: Ends, code: ErrorCode, ending: str
) -> None:
    ends.start()
    ends.ours.abort(code)
    ends.ours.abort(code)
    assert await ends.theirs.ending() == ending
    await until(lambda: ends.ours.closed)
    assert ends.ours.offer(memoryview(b"late"))  # nobody takes it, and nobody has to stop


@pytest.mark.asyncio
async def test_reset_of_the_application_is_told_to_the_owner(ends: Ends) -> None:
    ends.start()
    ends.theirs.reset()
    await until(lambda: bool(ends.other.closed))
    assert isinstance(ends.other.closed[0], ConnectionError)
    assert len(ends.other.closed) == 1


@pytest.mark.asyncio
async def test_write_to_a_socket_that_was_reset_is_told_to_the_owner_once(ends: Ends) -> None:
    ends.start()
    fd = ends.ours.sock.fileno()
    with socket.socket(fileno=os.dup(fd)) as same:
        same.shutdown(socket.SHUT_WR)
    assert ends.ours.offer(memoryview(b"x"))
    assert len(ends.other.closed) == 1
    assert isinstance(ends.other.closed[0], BrokenPipeError)
    await until(lambda: ends.ours.closed)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(ends.other.closed) == 1
