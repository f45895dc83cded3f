"""A TCP port that exists but does not answer, until it is told to."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Self


class FullBacklog:
    """Listens with a full accept queue: the kernel drops further SYNs, so that connecting to it takes for ever.

    ``relent`` makes room; the connection that waits then comes through with the kernel's next try.
    """

    def __init__(self, ip: str, port: int) -> None:
        self._listener = socket.socket()
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((ip, port))
        self._listener.listen(0)
        self.address = (ip, port)
        self._fillers: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        self._fillers.append(socket.create_connection(self.address))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for filler in self._fillers:
            filler.close()
        self._listener.close()

    async def relent(self) -> socket.socket:
        """Take what fills the queue; gives the next connection."""
        loop = asyncio.get_running_loop()
        for filler in self._fillers:
            accepted, peer = await loop.sock_accept(self._listener)
            assert peer == filler.getsockname()
            accepted.close()
        connection, _ = await loop.sock_accept(self._listener)
        return connection
