"""Ways into the mesh without capture: SOCKS5 and forwarded ports."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from tests.ztun.proxy.applications import Application, Wire, Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Mesh, Pair
from ztun.config import SOCKS5_PORT, ConnectionTimeouts
from ztun.errors import ConfigError
from ztun.mesh.model import Authorization, Match, PolicyAction, PolicyScope
from ztun.net.listeners import listen

pytestmark = pytest.mark.net

VIP, VIP6 = "10.10.0.1", "fd00::10"
SERVICE = "echo.default.svc.cluster.local"
GREETING = b"\x05\x01\x00"


def request(host: str, port: int, *, command: int = 1) -> bytes:
    """A SOCKS5 request in the form that fits the host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        body = b"\x03" + bytes((len(host),)) + host.encode()
    else:
        body = (b"\x01" if address.version == 4 else b"\x04") + address.packed
    return bytes((5, command, 0)) + body + struct.pack(">H", port)


def reply(number: int) -> bytes:
    return bytes((5, number, 0, 1)) + bytes(6)


@pytest_asyncio.fixture
async def served(pair: Pair, wires: Wires) -> Application:
    """The server's application, behind a service; the client's pod has a SOCKS5 port."""
    pair.service("echo", {80: APP_PORT}, VIP)
    pair.services["echo6"] = pair.service("echo6", {80: APP_PORT}, VIP6)
    del pair.workloads["server"]
    ports: dict[str, dict[int, int]] = {"echo": {80: APP_PORT}, "echo6": {80: APP_PORT}}
    pair.server = pair.pod("server", "far", services=ports)
    return await wires.application(pair.server_ip, APP_PORT)


async def start(pair: Pair, **settings: Any) -> None:
    await pair.start(socks5=True, **settings)


async def dial(pair: Pair, wires: Wires) -> Wire:
    return await wires.dial((pair.client.addresses[0], SOCKS5_PORT))


async def negotiate(wire: Wire, host: str, port: int) -> bytes:
    await wire.send(GREETING)
    assert await wire.receive(2) == b"\x05\x00"
    await wire.send(request(host, port))
    return await wire.receive(10)


@pytest.mark.asyncio
@pytest.mark.parametrize("host", [VIP, VIP6, SERVICE, SERVICE.upper(), "pod"])
async def test_socks5_reaches(pair: Pair, wires: Wires, served: Application, host: str) -> None:
    await start(pair)
    client = await dial(pair, wires)
    target = (pair.server_ip, APP_PORT) if host == "pod" else (host, 80)
    assert await negotiate(client, *target) == reply(0)
    server = await served.accept()
    assert server.peer[0] == pair.client.addresses[0]
    await client.send(b"question")
    assert await server.receive(8) == b"question"
    await server.send(b"answer")
    client.end()
    server.end()
    assert await client.receive_all() == b"answer"
    report = await pair.near.journal.end()
    assert report.hbone_addr == f"{pair.server_ip}:{APP_PORT}"
    assert str(report.source_identity) == str(pair.client.identity)


@pytest.mark.asyncio
async def test_socks5_in_single_bytes(pair: Pair, wires: Wires, served: Application) -> None:
    await start(pair)
    client = await dial(pair, wires)
    for byte in GREETING:
        await client.send(bytes((byte,)))
    assert await client.receive(2) == b"\x05\x00"
    for byte in request(SERVICE, 80):
        await client.send(bytes((byte,)))
    assert await client.receive(10) == reply(0)
    await served.accept()


@pytest.mark.asyncio
async def test_socks5_greeting_and_request_in_one(pair: Pair, wires: Wires, served: Application) -> None:
    await start(pair)
    client = await dial(pair, wires)
    await client.send(GREETING + request(VIP, 80))
    assert await client.receive(12) == b"\x05\x00" + reply(0)
    await served.accept()


@pytest.mark.asyncio
async def test_socks5_server_speaks_first(pair: Pair, wires: Wires, served: Application) -> None:
    await start(pair)
    client = await dial(pair, wires)
    await client.send(GREETING + request(VIP, 80))
    server = await served.accept()
    await server.send(b"220 ready")
    assert await client.receive(21) == b"\x05\x00" + reply(0) + b"220 ready"


@pytest.mark.asyncio
async def test_socks5_bytes_right_behind_the_reply_are_not_lost(
    pair: Pair, wires: Wires, served: Application
) -> None:
    await start(pair)
    for number in range(5):
        client = await dial(pair, wires)
        assert await negotiate(client, VIP, 80) == reply(0)
        text = b"%d" % number * 20_000
        client.writer.write(text)
        client.end()
        server = await served.accept()
        assert await server.receive_all() == text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("host", "port", "number"),
    [
        ("nowhere.example.org", 80, 4),  # unknown name: host unreachable
        (VIP, 81, 4),  # no such port
        ("server", APP_PORT + 1, 1),  # nobody listens there: the far proxy says 503
        ("stranger", APP_PORT, 5),  # a plain destination refuses
    ],
)
async def test_socks5_says_why_it_failed(
    pair: Pair, wires: Wires, served: Application, host: str, port: int, number: int
) -> None:
    await start(pair)
    client = await dial(pair, wires)
    target = {"server": pair.server_ip, "stranger": pair.addresses.take()}.get(host, host)
    assert await negotiate(client, target, port) == reply(number)
    assert await client.ending() == "eof"
    assert served.accepted == 0


@pytest.mark.asyncio
async def test_socks5_says_that_a_policy_denied(pair: Pair, wires: Wires, served: Application) -> None:
    deny = Match(destination_ports=(APP_PORT,))
    pair.policies["no"] = Authorization(
        "no", "default", PolicyScope.NAMESPACE, PolicyAction.DENY, (((deny,),),)
    )
    await start(pair)
    client = await dial(pair, wires)
    assert await negotiate(client, VIP, 80) == reply(2)
    assert served.accepted == 0


@pytest.mark.asyncio
async def test_socks5_refuses_data_before_the_reply(pair: Pair, wires: Wires, served: Application) -> None:
    await start(pair)
    client = await dial(pair, wires)
    await client.send(GREETING + request(VIP, 80) + b"GET / HTTP/1.1\r\n")
    assert await client.receive_all() == b"\x05\x00" + reply(1)
    assert code(await pair.near.journal.refusal()) == "socks5_request"
    assert served.accepted == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\x04\x01\x00\x50\x0a\x0a\x00\x01\x00", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (GREETING + request(VIP, 80, command=2), b"\x05\x00" + reply(7)),
        (GREETING + b"\x05\x01\x00\x09\x00\x00\x00\x00", b"\x05\x00" + reply(8)),
        (GREETING + request(VIP, 0), b"\x05\x00" + reply(1)),
        (GREETING + request("bad name\n", 80), b"\x05\x00" + reply(1)),
    ],
    ids=["HTTP", "SOCKS4", "insists on a password", "BIND", "address type", "port 0", "name"],
)
async def test_socks5_turns_away(
    pair: Pair, wires: Wires, served: Application, said: bytes, answer: bytes
) -> None:
    await start(pair)
    client = await dial(pair, wires)
    await client.send(said)
    assert await client.receive_all() == answer
    assert code(await pair.near.journal.refusal()) == "socks5_request"
    assert served.accepted == 0


@pytest.mark.asyncio
async def test_socks5_client_that_says_nothing(pair: Pair, wires: Wires, served: Application) -> None:
    await start(pair, timeouts=ConnectionTimeouts(socks5=0.05))
    client = await dial(pair, wires)
    assert await client.ending() == "eof"
    assert code(await pair.near.journal.refusal()) == "socks5_timeout"


@pytest.mark.asyncio
async def test_socks5_client_that_leaves(pair: Pair, wires: Wires, served: Application) -> None:
    await start(pair)
    client = await dial(pair, wires)
    await client.send(GREETING)
    client.reset()
    assert code(await pair.near.journal.refusal()) == "socks5_closed"


@pytest.mark.asyncio
async def test_forward_enters_as_the_first_pod_of_a_deployment(mesh: Mesh, wires: Wires) -> None:
    server = mesh.pod("server", "far")
    for name in ("web-b", "web-a"):
        mesh.workloads[name] = replace(mesh.pod(name, "near"), workload_name="web")
    application = await wires.application(server.addresses[0], APP_PORT)
    await mesh.start()
    deployment = replace(mesh.workloads["web-a"], name="web")
    await wires.dial(await mesh.enter(deployment, server.addresses[0]))
    peer = await application.accept()
    assert peer.peer[0] == mesh.workloads["web-a"].addresses[0]


@pytest.mark.asyncio
async def test_forward_takes_a_name(pair: Pair, wires: Wires, served: Application) -> None:
    await pair.start()
    client = await wires.dial(await pair.enter(pair.client, SERVICE, 80))
    server = await served.accept()
    await client.send(b"x")
    assert await server.receive(1) == b"x"
    assert pair.near.journal.opens[0].service == SERVICE


@pytest.mark.asyncio
async def test_port_that_is_taken_is_an_error_with_its_reason(pair: Pair, wires: Wires) -> None:
    await pair.start()
    blocker = await asyncio.start_server(lambda reader, writer: None, pair.addresses.take(), 0)
    wires.keep_server(blocker)
    ip, port = blocker.sockets[0].getsockname()[:2]
    with pytest.raises(ConfigError, match=r"cannot listen on .* for a test"):
        plane = pair.near.plane
        listen(plane.poller, ip, port, lambda *_: None, plane.settings.sockets, purpose="a test")
