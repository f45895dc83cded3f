"""Both ends of an application's connection, as asyncio streams that a test drives step by step."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from types import TracebackType
from typing import Self

_LINGER_RESET = struct.pack("ii", 1, 0)
LINE_LIMIT_BYTES = 64 * 1024


class Wire:
    """One connected TCP socket of an application."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def peer(self) -> tuple[str, int]:
        """The address of the other end, as this end sees it."""
        ip, port = self.writer.get_extra_info("peername")[:2]
        return ip, port

    @property
    def local(self) -> tuple[str, int]:
        """Our own address."""
        ip, port = self.writer.get_extra_info("sockname")[:2]
        return ip, port

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has room."""
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes; raises ``IncompleteReadError`` or ``ConnectionResetError``."""
        return await self.reader.readexactly(count)

    async def receive_all(self) -> bytes:
        """Everything up to the end of stream."""
        return await self.reader.read()

    async def ending(self) -> str:
        """``eof`` or ``reset``, whichever way the other side ends; what still comes is thrown away."""
        try:
            while await self.reader.read(LINE_LIMIT_BYTES):
                pass
        except ConnectionError:
            return "reset"
        return "eof"

    def end(self) -> None:
        """Send FIN; reading goes on."""
        self.writer.write_eof()

    def reset(self) -> None:
        """End with RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close, whatever state it is in."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError, OSError):
            await self.writer.wait_closed()


class Wires:
    """Opens and accepts connections, and closes all of them in the end."""

    def __init__(self) -> None:
        self._wires: list[Wire] = []
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        for wire in self._wires:
            wire.writer.transport.abort()
        for wire in self._wires:
            await wire.close()
        for server in self._servers:
            await server.wait_closed()

    async def dial(self, address: tuple[str, int], *, source: str | None = None) -> Wire:
        """Connect to ``address``."""
        local = (source, 0) if source is not None else None
        reader, writer = await asyncio.open_connection(*address, local_addr=local)
        return self.keep(Wire(reader, writer))

    async def application(self, ip: str, port: int) -> Application:
        """Listen on ``ip`` and ``port``."""
        application = Application(self)
        await application.listen(ip, port)
        return application

    async def echo(self, ip: str, port: int, *, tls: ssl.SSLContext | None = None) -> Application:
        """An application that answers with what it gets, and ends when the other side does."""
        application = Application(self, echo=True)
        await application.listen(ip, port, tls)
        return application

    def keep(self, wire: Wire) -> Wire:
        """Close this one in the end, too."""
        self._wires.append(wire)
        return wire

    def forget(self, wire: Wire) -> None:
        """This one is closed."""
        self._wires.remove(wire)

    def keep_server(self, server: asyncio.Server) -> asyncio.Server:
        """Close this one in the end, too."""
        self._servers.append(server)
        return server


class Application:
    """A listening application. ``accept`` gives its connections in order; ``accepted`` counts them."""

    def __init__(self, wires: Wires, *, echo: bool = False) -> None:
        self._wires = wires
        self._echo = echo
        self._queue: asyncio.Queue[Wire] = asyncio.Queue()
        self.accepted = 0
        self.address = ("", 0)

    async def listen(self, ip: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Start; with ``tls`` each connection is a TLS session that ends here."""
        server = await asyncio.start_server(self._serve, ip, port, backlog=1024, ssl=tls)
        self.address = server.sockets[0].getsockname()[:2]
        self._wires.keep_server(server)

    async def accept(self) -> Wire:
        """The next connection."""
        return await self._queue.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = self._wires.keep(Wire(reader, writer))
        self.accepted += 1
        if not self._echo:
            self._queue.put_nowait(wire)
            return
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(LINE_LIMIT_BYTES):
                await wire.send(data)
            if not writer.transport.is_closing() and writer.can_write_eof():
                wire.end()
        await wire.close()
