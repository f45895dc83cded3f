"""One pod's DNS proxy on loopback sockets, nameservers behind it, a resolver library in front of it."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Self

import dns.asyncquery
import dns.asyncresolver
import dns.message

from tests.peers.addresses import AddressBlock
from tests.ztun.dns.directory import CLIENT, snapshot
from tests.ztun.dns.nameserver import Nameserver, bound, open_sockets
from ztun.dns.limits import DnsLimits, InFlight
from ztun.dns.metrics import DnsMetrics
from ztun.dns.proxy import DnsProxy, DnsSurroundings
from ztun.dns.upstream import Upstream
from ztun.dns.zone import ZoneOptions
from ztun.errors import CaptureError
from ztun.mesh.model import Workload
from ztun.telemetry.metrics import Metrics

PORT = 15053
LABELS = ("udp", "client", "v1")


async def nobody_comes() -> Workload:
    """A client that never becomes known."""
    raise CaptureError("unknown_source", "not known")


class Ground:
    """``nameservers`` may be changed at any time; ``client`` and ``options`` too."""

    def __init__(
        self,
        limits: DnsLimits | None = None,
        in_flight: InFlight | None = None,
        own: AddressBlock | None = None,
    ) -> None:
        self.addresses = own or AddressBlock()
        self.ip = self.addresses.take()
        self.client: Workload | None = CLIENT
        self.wait_for_client: Callable[[], Awaitable[Workload]] = nobody_comes
        self.mesh = snapshot()
        self.options = partial(ZoneOptions, preferred_namespace="preferred")
        self.nameservers: list[tuple[str, int]] = []
        self.made: list[socket.socket] = []
        self.families = DnsMetrics(Metrics())
        limits = limits or DnsLimits()
        self.around = DnsSurroundings(
            snapshot=lambda: self.mesh,
            nameservers=lambda: self.nameservers,
            metrics=self.families,
            rng=random.Random(5),
            options=lambda: self.options(),
            limits=limits,
            in_flight=in_flight or InFlight(limits.queries_of_process, "process"),
        )

    async def __aenter__(self) -> Self:
        self.proxy = DnsProxy(
            self.around,
            lambda: self.client,
            lambda: self.wait_for_client(),
            Upstream(self.around.nameservers, open_sockets(self.made), self.around.limits),
        )
        await self.open(self.ip)
        return self

    async def open(self, *ips: str) -> None:
        await self.proxy.open(
            [bound(ip, socket.SOCK_DGRAM) for ip in ips], [bound(ip, socket.SOCK_STREAM) for ip in ips]
        )

    async def __aexit__(self, *_: object) -> None:
        self.proxy.close()
        await self.proxy.closed()
        assert [sock for sock in self.made if sock.fileno() >= 0] == []

    def behind(self, *servers: Nameserver) -> None:
        """Let these be the nameservers of resolv.conf."""
        self.nameservers = [server.address for server in servers]

    def resolver(self, **options: object) -> dns.asyncresolver.Resolver:
        """A stub resolver as an application has it."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [self.ip]
        resolver.port = PORT
        for name, value in options.items():
            setattr(resolver, name, value)
        return resolver

    async def udp(self, query: dns.message.Message) -> dns.message.Message:
        """One query by UDP; the answer must belong to it."""
        return await dns.asyncquery.udp(query, self.ip, port=PORT)

    async def tcp(self, query: dns.message.Message) -> dns.message.Message:
        """One query by TCP."""
        return await dns.asyncquery.tcp(query, self.ip, port=PORT)

    async def raw(self, wire: bytes) -> bytes:
        """A datagram out, a datagram back."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((self.ip, PORT))
            sock.send(wire)
            data: bytes = await loop.sock_recv(sock, 65_535)
            return data

    def count(self, family: str, kind: str, *labels: str) -> int:
        """One of Istio's counters for a query type."""
        value: int = getattr(self.families, family).value(kind, *(labels or LABELS))
        return value
