"""The tap passes everything on and sees what it should: a row of the demo must be able to fail."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ztun.lab.client import talk
from ztun.lab.echo import start_echo
from ztun.lab.tap import Tap, Watch

pytestmark = [pytest.mark.net, pytest.mark.asyncio]

SECRET = "a line that nobody on the path may read"


@asynccontextmanager
async def tapped_echo() -> AsyncIterator[Tap]:
    [server] = await start_echo("127.0.0.1", [0], "hello")
    tap = Tap(("127.0.0.1", 0), server.sockets[0].getsockname()[:2])
    await tap.start()
    try:
        yield tap
    finally:
        await tap.close()
        server.close()
        await server.wait_closed()


async def test_plain_text_through_the_tap_is_a_fault() -> None:
    async with tapped_echo() as tap:
        with tap.watch(Watch((SECRET.encode(),))) as watch:
            async with talk(*tap.address) as conversation:
                assert await conversation.ask(SECRET) == f"hello {SECRET}"
    assert f"'{SECRET}' was readable" in watch.faults
    assert any("not a TLS record" in fault for fault in watch.faults)
    assert "the server sent no ServerHello" in watch.faults


async def test_a_secret_is_found_when_it_arrives_in_pieces() -> None:
    async with tapped_echo() as tap:
        with tap.watch(Watch((SECRET.encode(),))) as watch:
            reader, writer = await asyncio.open_connection(*tap.address)
            seen = 0
            for piece in (SECRET[:10], SECRET[10:11], SECRET[11:]):
                writer.write(piece.encode())
                await writer.drain()
                seen += len(piece)
                while watch.bytes_up < seen:
                    await asyncio.sleep(0)
            assert watch.readable == {SECRET.encode()}
            writer.write_eof()
            assert await reader.read() == f"hello {SECRET}".encode()
            writer.close()
            await writer.wait_closed()


async def test_nothing_seen_is_a_fault() -> None:
    assert Watch(()).faults == ["0 bytes up and 0 down were seen"]


@pytest.mark.parametrize(
    ("version", "faults"),
    [(ssl.TLSVersion.TLSv1_3, []), (ssl.TLSVersion.TLSv1_2, ["the server chose TLS 1.2"])],
)
async def test_only_tls_1_3_is_without_fault(
    server_files: tuple[Path, Path], version: ssl.TLSVersion, faults: list[str]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*server_files)
    server_context.maximum_version = version
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context)
    tap = Tap(("127.0.0.1", 0), server.sockets[0].getsockname()[:2])
    await tap.start()
    with tap.watch(Watch((SECRET.encode(),))) as watch:
        reader, writer = await asyncio.open_connection(*tap.address, ssl=client_context)
        writer.write(f"{SECRET}\n".encode())
        assert await reader.readline() == f"{SECRET}\n".encode()
        writer.close()
        await writer.wait_closed()
    await tap.close()
    server.close()
    await server.wait_closed()
    assert [fault for fault in watch.faults if "chose" in fault or "readable" in fault] == faults
    assert (watch.faults == []) == (version is ssl.TLSVersion.TLSv1_3)


async def test_an_end_that_goes_away_takes_the_other_with_it() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    tap = Tap(("127.0.0.1", 0), server.sockets[0].getsockname()[:2])
    await tap.start()
    async with talk(*tap.address) as conversation:
        assert await conversation.ask("anyone there?") is None
    await tap.close()
    server.close()
    await server.wait_closed()
