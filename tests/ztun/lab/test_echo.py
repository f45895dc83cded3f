"""The echo server of the examples, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.lab.echo import MAX_LINE_BYTES, LineEcho, start_echo


@asynccontextmanager
async def echo(say: str = "hello", ports: int = 1) -> AsyncIterator[list[int]]:
    servers = await start_echo("127.0.0.1", [0] * ports, say)
    try:
        yield [server.sockets[0].getsockname()[1] for server in servers]
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


@pytest.mark.unit
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b""))),
    cuts=st.lists(st.integers(min_value=1, max_value=20)),
)
def test_the_answer_does_not_depend_on_how_the_bytes_arrive(lines: list[bytes], cuts: list[int]) -> None:
    sent = b"".join(line + b"\n" for line in lines)
    echo = LineEcho("hello")
    answer, at = b"", 0
    for cut in [*cuts, len(sent) + 1]:
        answer += echo.feed(sent[at : at + cut])
        at += cut
    assert answer + echo.end() == b"".join(b"hello " + line + b"\n" for line in lines)


@pytest.mark.unit
def test_a_short_line_is_answered_when_it_is_complete() -> None:
    echo = LineEcho("hello")
    assert echo.feed(b"te") == b""
    assert echo.feed(b"st\nne") == b"hello test\n"
    assert echo.end() == b"hello ne"
    assert echo.end() == b""


@pytest.mark.unit
def test_a_line_longer_than_the_bound_is_passed_on_in_pieces() -> None:
    echo = LineEcho("hello")
    long = b"x" * (MAX_LINE_BYTES + 1)
    assert echo.feed(long) == b"hello " + long
    assert echo.feed(b"yy") == b""
    assert echo.feed(b"\nz\n") == b"yy\nhello z\n"


@pytest.mark.net
@pytest.mark.asyncio
async def test_what_came_before_the_client_closed_its_side_is_answered() -> None:
    async with echo() as [port]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one\ntwo\nthree")
        writer.write_eof()
        assert await reader.read() == b"hello one\nhello two\nhello three"
        writer.close()
        await writer.wait_closed()


@pytest.mark.net
@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_not_buffered_without_bound() -> None:
    block = b"x" * 1023 + b"\n"
    total = 16 * 1024 * 1024
    async with echo("h") as [port]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                writer.write(block)
                await writer.drain()
                sent += len(block)
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        received = 0
        while chunk := await reader.read(1 << 20):
            received += len(chunk)
        await sending
        assert received == total // len(block) * (len(block) + 2)
        writer.close()
        await writer.wait_closed()


@pytest.mark.net
@pytest.mark.asyncio
async def test_several_ports_and_many_clients_at_once() -> None:
    async def ask(port: int, number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{number}\n".encode())
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    async with echo("hello-2", ports=2) as ports:
        answers = await asyncio.gather(*(ask(ports[number % 2], number) for number in range(200)))
    assert answers == [f"hello-2 {number}\n".encode() for number in range(200)]
