"""The TCP echo server of the examples: every line comes back with a word in front of it.

Same behaviour as the image ``istio/tcp-echo-server``, with two improvements: an unfinished last line is
answered when the client closes its side, and the length of a line does not decide how much memory is used.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import cast

import uvloop

from ztun.mesh.model import join_host_port

MAX_LINE_BYTES = 64 * 1024  # one read of a socket at most; a longer line is passed on in pieces
BACKLOG = 4096  # Linux caps it at net.core.somaxconn, whose default is 4096


class LineEcho:
    """Bytes in, answer out. A line longer than ``MAX_LINE_BYTES`` is answered while it is still arriving."""

    __slots__ = ("_pending", "_prefix", "_started")

    def __init__(self, say: str) -> None:
        self._prefix = f"{say} ".encode()
        self._pending = bytearray()
        self._started = False

    def feed(self, data: bytes) -> bytes:
        """The answer to what has arrived; empty while a short line is unfinished."""
        answer = bytearray()
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._answer(answer, line)
            answer += b"\n"
            self._started = False
        self._pending += rest
        if len(self._pending) > MAX_LINE_BYTES:
            self._answer(answer, b"")
        return bytes(answer)

    def end(self) -> bytes:
        """The answer to an unfinished last line."""
        answer = bytearray()
        if self._pending:
            self._answer(answer, b"")
        return bytes(answer)

    def _answer(self, answer: bytearray, line: bytes) -> None:
        if not self._started:
            answer += self._prefix
            self._started = True
        answer += self._pending
        answer += line
        self._pending.clear()


class EchoConnection(asyncio.Protocol):
    """One client. Reading stops while the client does not take its answers."""

    __slots__ = ("_lines", "_transport")

    _transport: asyncio.Transport

    def __init__(self, say: str) -> None:
        self._lines = LineEcho(say)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where the answers go."""
        self._transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's class does not derive from asyncio's

    def data_received(self, data: bytes) -> None:
        """Answer the lines that are complete."""
        if answer := self._lines.feed(data):
            self._transport.write(answer)

    def eof_received(self) -> None:
        """Answer what is left; returning nothing closes the connection once all answers are written."""
        if answer := self._lines.end():
            self._transport.write(answer)

    def pause_writing(self) -> None:
        """The client reads slower than it sends."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._transport.resume_reading()


async def start_echo(host: str | None, ports: Sequence[int], say: str) -> list[asyncio.Server]:
    """Listen on every port of an address (``None`` is all addresses); ``OSError`` when one is taken."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as opened:
        servers = []
        for port in ports:
            server = await loop.create_server(partial(EchoConnection, say), host, port, backlog=BACKLOG)
            opened.callback(server.close)
            servers.append(server)
        opened.pop_all()
    return servers


def serve_until_stopped(host: str | None, ports: Sequence[int], say: str) -> None:
    """Serve until SIGTERM (returns) or SIGINT (raises ``KeyboardInterrupt``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(host, ports, say))


async def _serve(host: str | None, ports: Sequence[int], say: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    servers = await start_echo(host, ports, say)
    try:
        for server in servers:
            for socket in server.sockets:
                address = socket.getsockname()
                print(f"listening on {join_host_port(address[0], address[1])}", file=sys.stderr, flush=True)
        await stopped.wait()
    finally:
        for server in servers:
            server.close()
