"""A real nameserver on loopback, UDP and TCP, whose answers the test writes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from tests.peers.addresses import AddressBlock


@dataclass(frozen=True)
class Asked:
    """A query as it arrived, and a way to send datagrams or messages back to it."""

    wire: bytes
    udp: bool
    peer: tuple[str, int]
    send: Callable[[bytes], None]

    @property
    def message(self) -> dns.message.Message:
        return dns.message.from_wire(self.wire)

    def response(self, *records: str, rcode: int = dns.rcode.NOERROR) -> bytes:
        """An answer with records written as ``name ttl IN type data``."""
        message = dns.message.make_response(self.message, recursion_available=True)
        message.set_rcode(dns.rcode.Rcode(rcode))
        for record in records:
            name, ttl, rdclass, rdtype, data = record.split(maxsplit=4)
            message.answer.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data))
        return message.to_wire(max_size=65_535)

    def truncated(self) -> bytes:
        """An empty answer that says: ask by TCP."""
        message = dns.message.from_wire(self.response())
        message.flags |= dns.flags.TC
        return message.to_wire()


class Nameserver:
    """Keeps what it was asked, and answers with what ``behave`` sends; by default with NXDOMAIN."""

    def __init__(self, addresses: AddressBlock, behave: Callable[[Asked], None] | None = None) -> None:
        self.ip = addresses.take()
        self.asked: list[Asked] = []
        self.behave = behave or (lambda asked: asked.send(asked.response(rcode=dns.rcode.NXDOMAIN)))
        self.connections = 0
        self._news = asyncio.Event()

    @property
    def address(self) -> tuple[str, int]:
        return self.ip, 53535

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=self.address)
        self._tcp = await asyncio.start_server(self._serve, *self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    def take(self, asked: Asked) -> None:
        self.asked.append(asked)
        self._news.set()
        self._news = asyncio.Event()
        self.behave(asked)

    async def until_asked(self, count: int = 1) -> Asked:
        """Wait for the ``count``-th query."""
        while len(self.asked) < count:
            await self._news.wait()
        return self.asked[count - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1

        def send(wire: bytes) -> None:
            writer.write(len(wire).to_bytes(2, "big") + wire)

        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                wire = await reader.readexactly(size)
                self.take(Asked(wire, False, writer.get_extra_info("peername")[:2], send))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop does not subclass it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        def send(wire: bytes) -> None:
            self._transport.sendto(wire, addr)

        self._server.take(Asked(data, True, addr[:2], send))


def answering(*records: str) -> Callable[[Asked], None]:
    """Always these records."""
    return lambda asked: asked.send(asked.response(*records))


def silent(asked: Asked) -> None:
    """A nameserver that hears and says nothing."""


def bound(ip: str, kind: int) -> socket.socket:
    """A bound socket, as the owner of a pod's namespace would hand it in."""
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ip, 15053))
    return sock


def open_sockets(made: list[socket.socket]) -> Callable[[int, int], socket.socket]:
    """A factory that remembers what it made."""

    def make(family: int, kind: int) -> socket.socket:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        made.append(sock)
        return sock

    return make
