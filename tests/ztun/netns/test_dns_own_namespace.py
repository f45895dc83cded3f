"""Names where proxy and application share a namespace: the proxy must not ask itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.rcode
import pytest
import pytest_asyncio

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Pod, write_mesh
from tests.peers.traffic import ROOT
from tests.ztun.dns.nameserver import Asked
from tests.ztun.netns.connections import APP_PORT, dial, listen
from tests.ztun.netns.nameserver import InsideNameserver
from tests.ztun.netns.namespaces import InsideNode, Namespace, Network, missing
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import lines, metric, wait_for
from tests.ztun.proxy.test_entries import negotiate, reply
from ztun.agent.rules import PACKET_MARK
from ztun.config import SOCKS5_PORT

pytestmark = pytest.mark.netns

REASON = missing()
NAMED = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "ServiceEntry",
    "metadata": {"name": "named", "namespace": "default"},
    "spec": {
        "hosts": ["named.example.org"],
        "ports": [{"number": 80, "targetPort": APP_PORT, "name": "tcp", "protocol": "TCP"}],
        "resolution": "DNS",
    },
}
LOOK_UP = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)[0][4][0])"


@dataclass
class Scene:
    """``client`` has a proxy to itself; ``outside`` and ``resolver`` are not in the mesh."""

    client: Namespace
    outside: Namespace
    resolver: Namespace
    node: InsideNode

    def answer(self, asked: Asked) -> None:
        """Both hosts outside the mesh are one machine."""
        question = asked.message.question[0]
        name = question.name.to_text()
        if name not in ("named.example.org.", "plain.example.org."):
            asked.send(asked.response(rcode=dns.rcode.NXDOMAIN))
        elif question.rdtype == 1:
            asked.send(asked.response(f"{name} 60 IN A {self.outside.ip}"))
        else:
            asked.send(asked.response())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if REASON:
        pytest.skip(REASON)
    directory = tmp_path_factory.mktemp("dns-own")
    authority = ThrowAwayAuthority(directory)
    with Network() as network:
        client, outside, resolver = (network.pod(name) for name in ("client", "outside", "resolver"))
        (directory / "resolv.conf").write_text(f"nameserver {resolver.ip}\n")
        write_mesh(directory / "mesh", [Pod("client", client.ip, "near")], [NAMED])
        node = InsideNode(
            client,
            "near",
            config=directory / "mesh",
            authority=authority.directory,
            directory=directory,
            environment={
                "PROXY_MODE": "dedicated",
                "PACKET_MARK": str(PACKET_MARK),
                "UNSTABLE_ENABLE_SOCKS5": "true",
                "ZTUN_RESOLV_CONF": str(directory / "resolv.conf"),
                "LOG_FORMAT": "json",
                "RUST_LOG": "info,dns=debug",
            },
        )
        enroll = [sys.executable, "-m", "ztun", "enroll", "--self", "--state", str(directory / "state")]
        subprocess.run(
            ["ip", "netns", "exec", client.name, *enroll],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with node:  # starts it
            node.wait_ready()
            yield Scene(client, outside, resolver, node)


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


@pytest_asyncio.fixture
async def nameserver(scene: Scene) -> AsyncIterator[InsideNameserver]:
    async with InsideNameserver(scene.resolver) as nameserver:
        nameserver.behave = scene.answer
        yield nameserver


async def look_up(scene: Scene, host: str) -> str:
    """What the C library of the application finds; its nameserver exists for the redirect only."""
    conf = Path("/etc/netns", scene.client.name, "resolv.conf")
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text("nameserver 10.99.99.99\n")
    try:
        process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", scene.client.name, sys.executable, "-c", LOOK_UP, host,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
    finally:
        conf.unlink()
        conf.parent.rmdir()
    return output.decode().strip()


@pytest.mark.asyncio
async def test_an_address_of_the_mesh_leads_out_of_it_again(
    scene: Scene, nameserver: InsideNameserver, wires: Wires
) -> None:
    """The application gets an allocated address; behind it the proxy needs the real one, and asks elsewhere."""
    vip = await look_up(scene, "named.example.org")
    assert vip.startswith("240.240.")
    assert nameserver.asked == []
    application = await listen(wires, scene.outside)
    client = await dial(wires, scene.client, vip, 80)
    server = await application.accept()
    assert server.peer[0] == scene.client.ip
    await client.send(b"hello")
    assert await server.receive(5) == b"hello"
    assert {asked.message.question[0].name.to_text() for asked in nameserver.asked} == {"named.example.org."}
    assert {asked.peer[0] for asked in nameserver.asked} == {scene.client.ip}
    assert metric(scene.node, "istio_on_demand_dns_total", hostname="named.example.org") == 1


@pytest.mark.asyncio
async def test_names_outside_the_mesh_pass(scene: Scene, nameserver: InsideNameserver) -> None:
    assert await look_up(scene, "plain.example.org") == scene.outside.ip
    assert await look_up(scene, "nobody.example.org") == ""


@pytest.mark.asyncio
@pytest.mark.parametrize(("host", "port"), [("plain.example.org", APP_PORT), ("named.example.org", 80)])
async def test_socks5_resolves_as_the_application_would(
    scene: Scene, nameserver: InsideNameserver, wires: Wires, host: str, port: int
) -> None:
    application = await listen(wires, scene.outside)
    client = await dial(wires, scene.client, scene.client.ip, SOCKS5_PORT)
    assert await negotiate(client, host, port) == reply(0)
    server = await application.accept()
    await client.send(b"hello")
    assert await server.receive(5) == b"hello"


@pytest.mark.asyncio
async def test_socks5_says_that_a_name_is_unknown(
    scene: Scene, nameserver: InsideNameserver, wires: Wires
) -> None:
    client = await dial(wires, scene.client, scene.client.ip, SOCKS5_PORT)
    assert await negotiate(client, "nobody.example.org", 80) == reply(4)

    def refused() -> bool:
        return any(
            (line.get("error.code"), line.get("error.stage")) == ("dns_lookup", "dns")
            for line in lines(scene.node)
        )

    await wait_for(scene.node, "said why", refused)
