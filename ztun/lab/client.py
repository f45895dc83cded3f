"""What a person with a telnet client does: connect, type a line, read the answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator

from ztun.lab.process import LabError

ANSWER_SECONDS = 15.0  # covers a first certificate, a first tunnel and one retry on a busy machine
SOCKS5_GREETING = b"\x05\x01\x00"  # version 5, one method: no authentication (RFC 1928 section 3)
SOCKS5_CONNECT = b"\x05\x01\x00"  # version 5, CONNECT, reserved (section 4)
SOCKS5_REPLY_BYTES = 10  # of a reply with an IPv4 address (section 6)


class Conversation:
    """An open connection that lines are sent over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, line: str) -> str | None:
        """The answer to a line; None when the connection was closed instead."""
        if self._writer.is_closing():
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._writer.write(f"{line}\n".encode())
                await self._writer.drain()
                answer = await self._reader.readline()
        except ConnectionError:
            return None
        except TimeoutError:
            raise LabError("lab_no_answer", f"no answer to {line!r} within {ANSWER_SECONDS:.0f} s") from None
        return answer.decode(errors="replace").rstrip("\r\n") if answer else None

    async def closed(self) -> bool:
        """Wait for the other side to close; False when it does not."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._reader.read() == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


@contextlib.asynccontextmanager
async def talk(
    ip: str, port: int, *, through_socks5: tuple[str, int] | None = None, sock: socket.socket | None = None
) -> AsyncIterator[Conversation]:
    """Connect to a program, or through a SOCKS5 proxy to ``ip`` (a hostname then). Raises ``OSError``.

    With ``sock``, an unconnected one, the connection leaves from where that was made; it is closed in the end.
    """
    if sock is None:
        reader, writer = await asyncio.open_connection(*(through_socks5 or (ip, port)))
    else:
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (ip, port))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
    async with _closing(writer):
        if through_socks5:
            await _socks5(reader, writer, ip, port)
        yield Conversation(reader, writer)


@contextlib.asynccontextmanager
async def talk_over(connected: socket.socket) -> AsyncIterator[Conversation]:
    """Talk over a connection that somebody has made; it is closed in the end."""
    try:
        connected.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connected)
    except BaseException:
        connected.close()
        raise
    async with _closing(writer):
        yield Conversation(reader, writer)


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _socks5(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    try:
        name = b"\x01" + ipaddress.IPv4Address(host).packed
    except ValueError:
        name = bytes([3, len(host)]) + host.encode("ascii")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(SOCKS5_GREETING)
            await reader.readexactly(2)
            writer.write(SOCKS5_CONNECT + name + port.to_bytes(2))
            reply = await reader.readexactly(SOCKS5_REPLY_BYTES)
    except (asyncio.IncompleteReadError, TimeoutError) as error:
        raise ConnectionError(f"SOCKS5: no reply ({error})") from error
    if reply[1] != 0:
        raise ConnectionRefusedError(f"SOCKS5: reply {reply[1]}")
