"""A nameserver on port 53 of a namespace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Self

import dns.rcode

from tests.ztun.dns.nameserver import Asked
from tests.ztun.netns.namespaces import Namespace


class InsideNameserver:
    """Keeps what it was asked, and answers with what ``behave`` sends; by default with NXDOMAIN."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.asked: list[Asked] = []
        self.behave: Callable[[Asked], None] = lambda asked: asked.send(
            asked.response(rcode=dns.rcode.NXDOMAIN)
        )

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def make(kind: int) -> socket.socket:
            sock = socket.socket(socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._namespace.ip, 53))
            sock.setblocking(False)
            return sock

        self._udp = self._namespace.inside(lambda: make(socket.SOCK_DGRAM))
        loop.add_reader(self._udp.fileno(), self._datagram)
        self._tcp = await asyncio.start_server(
            self._serve, sock=self._namespace.inside(lambda: make(socket.SOCK_STREAM))
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._udp.fileno())
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    def _datagram(self) -> None:
        wire, peer = self._udp.recvfrom(65_535)
        self._take(Asked(wire, True, peer, lambda answer: self._udp.sendto(answer, peer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            peer = writer.get_extra_info("peername")
            self._take(Asked(wire, False, peer, lambda one: writer.write(len(one).to_bytes(2, "big") + one)))
            await writer.drain()
        finally:
            writer.close()

    def _take(self, asked: Asked) -> None:
        self.asked.append(asked)
        self.behave(asked)
