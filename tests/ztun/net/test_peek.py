"""A server name is found in the first bytes of a connection, and those bytes are still forwarded unchanged."""

from __future__ import annotations

import asyncio

import pytest

from tests.ztun.net.ends import Ends
from tests.ztun.net.test_client_hello import hello_of, records
from tests.ztun.proxy.mesh import until
from ztun.net.app_socket import EARLY_BYTES
from ztun.net.client_hello import MAX_HELLO_BYTES, ClientHello
from ztun.net.peek import peek_client_hello

pytestmark = pytest.mark.net

PATIENT_SECONDS = 3600.0
HELLO = hello_of("db.example.com")


async def forwarded(ends: Ends, count: int) -> bytes:
    ends.start()
    await until(lambda: len(ends.other.data) >= count)
    return bytes(ends.other.data)


@pytest.mark.asyncio
async def test_a_hello_in_one_piece_is_read_and_forwarded(ends: Ends) -> None:
    await ends.theirs.send(HELLO)
    assert await peek_client_hello(ends.ours, PATIENT_SECONDS) == ClientHello("db.example.com")
    assert await forwarded(ends, len(HELLO)) == HELLO
    assert ends.ours.bytes_read == len(HELLO)


@pytest.mark.asyncio
async def test_a_hello_in_many_pieces_is_waited_for(ends: Ends) -> None:
    peeking = asyncio.ensure_future(peek_client_hello(ends.ours, PATIENT_SECONDS))
    for at in range(0, len(HELLO), 50):
        before = len(ends.ours.early)
        await ends.theirs.send(HELLO[at : at + 50])
        await until(lambda before=before: len(ends.ours.early) > before)  # type: ignore[misc]
    assert await peeking == ClientHello("db.example.com")
    await ends.theirs.send(b"more")
    assert await forwarded(ends, len(HELLO) + 4) == HELLO + b"more"


@pytest.mark.asyncio
async def test_another_protocol_is_not_waited_for(ends: Ends) -> None:
    await ends.theirs.send(b"S")
    assert await peek_client_hello(ends.ours, PATIENT_SECONDS) is None
    assert await forwarded(ends, 1) == b"S"


@pytest.mark.asyncio
async def test_silence_is_waited_for_no_longer_than_the_limit(ends: Ends) -> None:
    assert await peek_client_hello(ends.ours, 0) is None
    await ends.theirs.send(HELLO)
    assert await forwarded(ends, len(HELLO)) == HELLO


@pytest.mark.asyncio
async def test_a_client_that_ends_early_is_not_waited_for(ends: Ends) -> None:
    await ends.theirs.send(HELLO[:20])
    ends.theirs.end()
    assert await peek_client_hello(ends.ours, PATIENT_SECONDS) is None
    ends.start()
    await until(lambda: ends.other.ended)
    assert ends.other.data == HELLO[:20]


@pytest.mark.asyncio
async def test_a_client_that_resets_is_not_waited_for(ends: Ends) -> None:
    ends.theirs.reset()
    assert await peek_client_hello(ends.ours, PATIENT_SECONDS) is None


@pytest.mark.asyncio
async def test_a_hello_without_end_is_read_up_to_the_limit_only(ends: Ends) -> None:
    endless = records(b"\x01" + MAX_HELLO_BYTES.to_bytes(3) + bytes(MAX_HELLO_BYTES), 2**14)
    ends.theirs.writer.write(endless)
    assert await peek_client_hello(ends.ours, PATIENT_SECONDS) is None
    assert len(ends.ours.early) <= EARLY_BYTES
    assert await forwarded(ends, len(endless)) == endless
