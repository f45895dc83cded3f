"""Pods that know nothing of the mesh: their traffic is redirected by the kernel to a proxy in their namespace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Pod, write_mesh
from tests.ztun.netns.connections import APP_PORT, close, dial, listen
from tests.ztun.netns.namespaces import InsideNode, Namespace, Network, missing
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import completed, completion, exchange, lines, metric, wait_for
from ztun.agent.rules import PACKET_MARK
from ztun.mesh.model import join_host_port

pytestmark = pytest.mark.netns

VIP = "10.96.0.10"
OWN_PORTS = (15001, 15006, 15008)
REASON = missing()

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "echo", "namespace": "default"},
    "spec": {
        "clusterIP": VIP,
        "selector": {"app": "server"},
        "ports": [{"name": "tcp", "port": 80, "targetPort": APP_PORT, "protocol": "TCP"}],
    },
}
STRICT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "default", "namespace": "default"},
    "spec": {"mtls": {"mode": "STRICT"}},
}


@dataclass
class World:
    """Two captured pods with a proxy each, and a stranger without."""

    client: Namespace
    server: Namespace
    stranger: Namespace
    near: InsideNode
    far: InsideNode
    directory: Path

    def configure(self, *documents: dict[str, Any]) -> None:
        """Write the mesh; the proxies follow."""
        pods = [Pod("client", self.client.ip, "near"), Pod("server", self.server.ip, "far")]
        draft = write_mesh(self.directory / "draft", pods, [SERVICE, *documents]) / "mesh.yaml"
        (self.directory / "mesh").mkdir(exist_ok=True)
        draft.replace(self.directory / "mesh" / "mesh.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if REASON:
        pytest.skip(REASON)
    directory = tmp_path_factory.mktemp("netns")
    authority = ThrowAwayAuthority(directory)
    with Network() as network, contextlib.ExitStack() as stack:
        client, server, stranger = (network.pod(name) for name in ("client", "server", "stranger"))
        nodes = [
            InsideNode(
                namespace,
                name,
                config=directory / "mesh",
                authority=authority.directory,
                directory=directory,
                environment={
                    "ZTUN_CAPTURE": "true",
                    "PACKET_MARK": str(PACKET_MARK),
                    "ENABLE_ORIG_SRC": "true",
                    "LOG_FORMAT": "json",
                },
            )
            for namespace, name in ((client, "near"), (server, "far"))
        ]
        world = World(client, server, stranger, nodes[0], nodes[1], directory)
        world.configure()
        for node in nodes:
            node.spawn()
            stack.push(node)
        for node in nodes:
            node.wait_ready()
        client.capture()
        server.capture()
        yield world


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


@pytest.mark.asyncio
@pytest.mark.parametrize("target", ["pod", "service"])
async def test_outbound_is_captured_and_tunnelled(world: World, wires: Wires, target: str) -> None:
    application = await listen(wires, world.server)
    before = len(completed(world.near)), len(completed(world.far))
    address = (world.server.ip, APP_PORT) if target == "pod" else (VIP, 80)
    client = await dial(wires, world.client, *address)
    server = await application.accept()
    assert server.peer[0] == world.client.ip
    assert server.local == (world.server.ip, APP_PORT)
    await exchange(client, server)
    await close(client, server)
    for node, count in ((world.near, before[0]), (world.far, before[1])):
        wanted = {
            "src.identity": "spiffe://cluster.local/ns/default/sa/client",
            "dst.identity": "spiffe://cluster.local/ns/default/sa/server",
            "error": None,
        }
        record = await completion(node, count, wanted)
        assert record["dst.hbone_addr"] == f"{world.server.ip}:{APP_PORT}"
        assert record["dst.addr"] == f"{world.server.ip}:15008"
    assert completed(world.near)[-1]["src.addr"].startswith(f"{world.client.ip}:")
    assert metric(world.far, "istio_tcp_connections_closed_total", connection_security_policy="mutual_tls")


@pytest.mark.asyncio
async def test_pods_may_call_in_both_directions(world: World, wires: Wires) -> None:
    application = await listen(wires, world.client)
    caller = await dial(wires, world.server, world.client.ip)
    called = await application.accept()
    assert called.peer[0] == world.server.ip
    await exchange(caller, called)
    await close(caller, called)


@pytest.mark.asyncio
async def test_reset_is_carried_through_the_kernels_redirect(world: World, wires: Wires) -> None:
    application = await listen(wires, world.server)
    client = await dial(wires, world.client, world.server.ip)
    server = await application.accept()
    await exchange(client, server)
    client.reset()
    assert await server.ending() == "reset"


@pytest.mark.asyncio
async def test_outbound_to_a_stranger_passes_in_plain(world: World, wires: Wires) -> None:
    application = await listen(wires, world.stranger)
    client = await dial(wires, world.client, world.stranger.ip)
    server = await application.accept()
    assert server.peer[0] == world.client.ip
    await exchange(client, server)
    before = len(completed(world.near))
    await close(client, server)
    record = await completion(world.near, before, {"src.addr": join_host_port(*client.local)})
    assert (record["dst.addr"], record.get("dst.hbone_addr")) == (f"{world.stranger.ip}:{APP_PORT}", None)


@pytest.mark.asyncio
async def test_outbound_to_nobody_is_refused(world: World, wires: Wires) -> None:
    with pytest.raises(ConnectionResetError):  # sometimes before the connection is known to stand
        client = await dial(wires, world.client, world.stranger.ip, 9)
        await client.receive(1)


@pytest.mark.asyncio
async def test_plaintext_of_a_stranger_is_delivered_with_its_address(world: World, wires: Wires) -> None:
    application = await listen(wires, world.server)
    before = len(completed(world.far))
    client = await dial(wires, world.stranger, world.server.ip)
    server = await application.accept()
    assert server.peer[0] == world.stranger.ip
    assert server.local == (world.server.ip, APP_PORT)
    await exchange(client, server)
    await close(client, server)
    record = await completion(world.far, before, {"src.addr": join_host_port(*client.local)})
    assert record["direction"] == "inbound"
    assert "src.identity" not in record
    assert "dst.hbone_addr" not in record


@pytest.mark.asyncio
async def test_plaintext_of_a_stranger_is_refused_when_strict(world: World, wires: Wires) -> None:
    application = await listen(wires, world.server)
    standing = await dial(wires, world.stranger, world.server.ip)
    standing_server = await application.accept()
    await exchange(standing, standing_server)
    loads = count(world, "configuration loaded")
    world.configure(STRICT)
    try:
        await wait_for(world.far, "strict", lambda: count(world, "configuration loaded") > loads)
        assert await standing.ending() == "reset"
        assert await standing_server.ending() == "reset"
        with pytest.raises(ConnectionResetError):
            stranger = await dial(wires, world.stranger, world.server.ip)
            await stranger.send(b"let me in")
            await stranger.receive(1)
        assert application.accepted == 1
        member = await dial(wires, world.client, world.server.ip)
        await exchange(member, await application.accept())
    finally:
        world.configure()
        await wait_for(world.far, "permissive", lambda: count(world, "configuration loaded") > loads + 1)
    refused = [line for line in completed(world.far) if line.get("error.code") == "policy_rejection"]
    assert refused
    again = await dial(wires, world.stranger, world.server.ip)
    await exchange(again, await application.accept())


def count(world: World, message: str) -> int:
    return sum(line.get("message") == message for line in lines(world.far))


@pytest.mark.asyncio
async def test_traffic_inside_the_pod_is_left_alone(world: World, wires: Wires) -> None:
    for ip in ("127.0.0.1", world.client.ip):
        application = await listen(wires, world.client, ip, 9100)
        before = metric(world.near, "istio_tcp_connections_opened_total")
        client = await dial(wires, world.client, ip, 9100)
        server = await application.accept()
        await exchange(client, server)
        assert server.peer[0] == ip
        assert metric(world.near, "istio_tcp_connections_opened_total") == before


@pytest.mark.asyncio
@pytest.mark.parametrize("port", OWN_PORTS)
@pytest.mark.parametrize("way", ["own pod", "localhost", "other pod", "from a stranger"])
async def test_loops_are_refused(world: World, wires: Wires, way: str, port: int) -> None:
    """Every port of the proxy, from everywhere: at most a connection that ends without a byte."""
    source = world.stranger if way == "from a stranger" else world.client
    ip = {"own pod": world.client.ip, "localhost": "127.0.0.1"}.get(way, world.server.ip)
    before = world.near.descriptors(), world.far.descriptors()
    answer = b""
    with contextlib.suppress(ConnectionResetError, ConnectionRefusedError):
        client = await dial(wires, source, ip, port)
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        while data := await client.reader.read(1024):
            answer += data
    assert b"HTTP" not in answer
    assert len(answer) < 100  # at most a TLS alert
    for node, count in zip((world.near, world.far), before, strict=True):
        await wait_for(
            node,
            "rid of the connection",
            lambda node=node, count=count: node.descriptors() <= count + 2,  # type: ignore[misc]
        )


@pytest.mark.asyncio
async def test_many_captured_connections(world: World, wires: Wires) -> None:
    application = await listen(wires, world.server, port=9200, echo=True)

    async def one(number: int) -> None:
        client = await dial(wires, world.client, world.server.ip, 9200)
        text = b"%05d" % number
        await client.send(text)
        client.end()
        assert await client.receive_all() == text

    await asyncio.gather(*(one(number) for number in range(100)))
    assert application.accepted == 100
