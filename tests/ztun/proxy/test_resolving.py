"""Names that lead out of the mesh: which address is taken, and how often somebody is asked for it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from typing import Any

import dns.rcode
import pytest
import pytest_asyncio

from tests.peers.addresses import AddressBlock
from tests.ztun.dns.nameserver import Asked, Nameserver, open_sockets
from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Pair, until
from tests.ztun.proxy.test_entries import negotiate, reply
from ztun.config import SOCKS5_PORT
from ztun.dns.limits import DnsLimits
from ztun.dns.settings import DnsSettings
from ztun.dns.upstream import Upstream
from ztun.dns.zone import Family
from ztun.errors import ConnectError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.lookup import OutboundRoute, RouteKind
from ztun.mesh.model import Service, ServicePort, Workload
from ztun.net.app_socket import AppSocket
from ztun.proxy.connector import Connector

pytestmark = [pytest.mark.net, pytest.mark.asyncio]

HOST = "db.example.org"
V4, V6 = "192.0.2.1", "2001:db8::1"


class SystemResolver:
    """An event loop whose C library knows these addresses of every name; it answers when ``open`` is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *addresses: str) -> None:
        self._loop = loop
        self.addresses = addresses
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def getaddrinfo(self, host: str, port: None, *, family: int, **hints: int) -> list[Any]:
        self.asked.append(host)
        await self.open.wait()
        found = [(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip) for ip in self.addresses]
        return [
            (kind, hints["type"], 6, "", (ip, 0)) for kind, ip in found if family in (socket.AF_UNSPEC, kind)
        ]


async def started(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *addresses: str, **settings: Any
) -> SystemResolver:
    """The pair, near a C library that knows these addresses."""
    await pair.start(**settings)
    system = SystemResolver(pair.near.plane.loop, *addresses)
    monkeypatch.setattr(pair.near.plane, "loop", system)
    return system


@pytest_asyncio.fixture
async def nameserver(pair: Pair) -> AsyncIterator[Nameserver]:
    """What the near proxy asks by itself, for names and pods; the pair is started, and captured."""
    async with Nameserver(AddressBlock()) as nameserver:
        await pair.start(socks5=True, capture=True, dns=DnsSettings())
        pair.near.plane.home.upstream = Upstream(lambda: [nameserver.address], open_sockets([]), DnsLimits())
        yield nameserver


def knowing(**records: tuple[str, ...]) -> Any:
    """A nameserver with these records, by type, of every name."""

    def behave(asked: Asked) -> None:
        name = asked.message.question[0].name.to_text()
        kind = "A" if asked.message.question[0].rdtype == 1 else "AAAA"
        asked.send(asked.response(*(f"{name} 60 IN {kind} {ip}" for ip in records.get(kind, ()))))

    return behave


@pytest.mark.parametrize(
    ("known", "ipv6", "preferred", "taken"),
    [
        ((V4, V6), True, 4, V4),
        ((V4, V6), True, 6, V6),
        ((V4, V6), False, 6, V4),
        ((V6,), True, 4, V6),
        ((V4,), True, 6, V4),
        ((V6,), False, 4, None),
    ],
)
class TestFamilies:
    """The family of what the client dialled comes first, IPv6 only where it is not switched off."""

    async def test_of_the_system(
        self,
        pair: Pair,
        monkeypatch: pytest.MonkeyPatch,
        known: tuple[str, ...],
        ipv6: bool,
        preferred: Family,
        taken: str | None,
    ) -> None:
        await started(pair, monkeypatch, *known, ipv6=ipv6)
        await self._check(pair, preferred, taken)

    async def test_of_the_nameservers(
        self,
        pair: Pair,
        nameserver: Nameserver,
        monkeypatch: pytest.MonkeyPatch,
        known: tuple[str, ...],
        ipv6: bool,
        preferred: Family,
        taken: str | None,
    ) -> None:
        nameserver.behave = knowing(
            A=tuple(ip for ip in known if ip == V4), AAAA=tuple(ip for ip in known if ip == V6)
        )
        plane = pair.near.plane
        monkeypatch.setattr(plane, "settings", dataclasses.replace(plane.settings, ipv6=ipv6))
        await self._check(pair, preferred, taken)

    async def _check(self, pair: Pair, preferred: Family, taken: str | None) -> None:
        site = pair.near.plane.home
        if taken is not None:
            assert {await site.resolve(HOST, preferred) for _ in range(20)} == {taken}
            return
        with pytest.raises(ConnectError) as caught:
            await site.resolve(HOST, preferred)
        assert caught.value.code == "dns_empty"


async def test_the_family_of_the_client_counts(
    pair: Pair, wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = await wires.application(pair.addresses.take(), 0)
    port = four.address[1]
    six = await wires.application("::1", port)
    await started(pair, monkeypatch, four.address[0], "::1")
    outside = Workload("outside", "outside", "default", hostname=HOST)
    route = OutboundRoute(RouteKind.TCP, (HOST, port), destination=outside)
    for client, application in (("127.0.0.1", four), ("::1", six)):
        reached, _ = await Connector(pair.near.plane).connect(pair.client, (client, 1), route)
        assert isinstance(reached, AppSocket)
        await application.accept()
        reached.abort(ErrorCode.CANCEL)


async def test_many_connections_to_a_name_are_one_question(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one would sit in a thread of its own, and there are few."""
    system = await started(pair, monkeypatch, V4, V6)
    system.open.clear()
    site = pair.near.plane.home
    waiting = [asyncio.ensure_future(site.resolve(HOST, 4 if n % 2 else 6)) for n in range(100)]
    await until(lambda: bool(system.asked))
    system.open.set()
    assert set(await asyncio.gather(*waiting)) == {V4, V6}
    assert await site.resolve(HOST, 4) == V4
    assert system.asked == [HOST]


async def test_a_nameserver_that_fails_for_one_family_only(pair: Pair, nameserver: Nameserver) -> None:
    """Some do for AAAA."""

    def behave(asked: Asked) -> None:
        question = asked.message.question[0]
        if question.rdtype == 1:
            asked.send(asked.response(f"{question.name} 60 IN A {V4}"))
        else:
            asked.send(asked.response(rcode=dns.rcode.SERVFAIL))

    nameserver.behave = behave
    assert await pair.near.plane.home.resolve(HOST, 6) == V4


async def test_what_failed_is_said_with_its_hint(pair: Pair, nameserver: Nameserver) -> None:
    nameserver.behave = lambda asked: asked.send(asked.response(rcode=dns.rcode.REFUSED))
    with pytest.raises(ConnectError) as caught:
        await pair.near.plane.home.resolve(HOST, 4)
    assert caught.value.code == "dns_server_failure"
    assert "REFUSED" in str(caught.value)
    assert caught.value.hint


class TestExternalNames:
    """SOCKS5 and forwarded ports lead where an application with captured DNS would go."""

    OUTSIDE = "store.eu-west-1.rds.example.net"
    ALIAS = "db.default.svc.cluster.local"

    async def alias(self, pair: Pair, target: str, **more: Any) -> None:
        pair.services["db"] = Service("db", "default", self.ALIAS, canonical=True, alias_of=target, **more)
        await pair.apply()

    async def enter(self, pair: Pair, wires: Wires, way: str, port: int) -> Wire:
        if way == "forward":
            return await wires.dial(await pair.enter(pair.client, self.ALIAS, port))
        client = await wires.dial((pair.client.addresses[0], SOCKS5_PORT))
        assert await negotiate(client, self.ALIAS, port) == reply(0)
        return client

    @pytest.mark.parametrize("way", ["forward", "SOCKS5"])
    async def test_outside_the_mesh(self, pair: Pair, nameserver: Nameserver, wires: Wires, way: str) -> None:
        await self.alias(pair, self.OUTSIDE)
        application = await wires.application(pair.addresses.take(), 0)
        ip, port = application.address
        nameserver.behave = knowing(A=(ip,))
        client = await self.enter(pair, wires, way, port)
        server = await application.accept()
        await client.send(b"x")
        assert await server.receive(1) == b"x"
        asked = {one.message.question[0].name.to_text() for one in nameserver.asked}
        assert asked == {f"{self.OUTSIDE}."}

    @pytest.mark.parametrize("way", ["forward", "SOCKS5"])
    async def test_of_a_service_of_the_mesh(
        self, pair: Pair, nameserver: Nameserver, wires: Wires, way: str
    ) -> None:
        pair.service("echo", {80: APP_PORT}, "10.10.0.1")
        services: dict[str, dict[int, int]] = {"echo": {80: APP_PORT}}
        del pair.workloads["server"]
        server = pair.pod("server", "far", services=services)
        await self.alias(pair, "echo.default.svc.cluster.local")
        application = await wires.application(server.addresses[0], APP_PORT)
        await self.enter(pair, wires, way, 80)
        await application.accept()
        assert nameserver.asked == []
        assert pair.near.journal.opens[0].service == "echo.default.svc.cluster.local"

    async def test_one_whose_port_the_mesh_knows_keeps_its_name(
        self, pair: Pair, nameserver: Nameserver, wires: Wires
    ) -> None:
        application = await wires.application(pair.addresses.take(), 0)
        ip, port = application.address
        nameserver.behave = knowing(A=(ip,))
        ports = {port: ServicePort(port, port)}
        named = Workload(
            "named", "named", "default", hostname=self.OUTSIDE,
            services={("default", self.ALIAS): {port: port}},
        )  # fmt: skip
        pair.workloads["named"] = named
        await self.alias(pair, self.OUTSIDE, ports=ports)
        await self.enter(pair, wires, "SOCKS5", port)
        await application.accept()
        assert pair.near.journal.opens[0].service == self.ALIAS

    async def test_of_nothing(self, pair: Pair, nameserver: Nameserver, wires: Wires) -> None:
        await self.alias(pair, self.OUTSIDE)
        client = await wires.dial((pair.client.addresses[0], SOCKS5_PORT))
        assert await negotiate(client, self.ALIAS, APP_PORT) == reply(4)
        assert code(await pair.near.journal.refusal()) == "dns_lookup"
        forwarded = await wires.dial(await pair.enter(pair.client, self.ALIAS))
        assert await forwarded.ending() == "reset"
