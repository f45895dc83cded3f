"""Names inside captured pods: the C library, a resolver library, and connections that are made by name."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest
import pytest_asyncio

from tests.peers.traffic import ROOT
from tests.ztun.agent.pods import Pod
from tests.ztun.dns.nameserver import Asked, answering
from tests.ztun.netns.connections import APP_PORT, listen
from tests.ztun.netns.inpod import VIP, VIP6, InpodNode, InpodWorld
from tests.ztun.netns.nameserver import InsideNameserver
from tests.ztun.netns.namespaces import missing
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import lines, metric, wait_for

pytestmark = pytest.mark.netns

REASON = missing()
ENTRY = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "ServiceEntry",
    "metadata": {"name": "db", "namespace": "default"},
    "spec": {
        "hosts": ["db.example.com", "other.example.com"],
        "ports": [{"number": 3306, "name": "tcp", "protocol": "TCP"}],
        "resolution": "STATIC",
        "endpoints": [{"address": "", "ports": {"tcp": APP_PORT}}],
    },
}
HEADLESS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "each", "namespace": "default"},
    "spec": {"clusterIP": "None", "selector": {"app": "server"}, "ports": [{"port": APP_PORT}]},
}
LOOK_UP = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = sorted({one[4][0] for one in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        found[name] = error.errno
print(json.dumps(found))
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
    sys.stdin.readline()
    print(connection.getpeername()[0], flush=True)
    while data := connection.recv(100):
        connection.sendall(data)
"""


@dataclass
class Scene:
    """``client`` on node ``near``, ``server`` on node ``far``; ``resolver`` is a machine with a nameserver."""

    world: InpodWorld
    near: InpodNode
    far: InpodNode
    client: Pod
    server: Pod
    resolver: Pod

    def resolv_conf(self) -> None:
        """What Kubernetes writes into a pod; the nameserver itself is out of the pods' reach."""
        directory = Path("/etc/netns", self.client.name)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "resolv.conf").write_text(
            "search default.svc.cluster.local svc.cluster.local cluster.local\n"
            "nameserver 10.99.99.99\noptions ndots:5\n"
        )
        self.world.stack.callback(directory.rmdir)
        self.world.stack.callback((directory / "resolv.conf").unlink)

    def command(self, code: str, *arguments: str) -> list[str]:
        """A Python program inside the client's pod, with the resolv.conf of the pod."""
        return ["ip", "netns", "exec", self.client.name, sys.executable, "-c", code, *arguments]

    async def look_up(self, *names: str) -> dict[str, Any]:
        """What the C library finds; an error is its number."""
        process = await asyncio.create_subprocess_exec(
            *self.command(LOOK_UP, *names), stdout=subprocess.PIPE, cwd=ROOT
        )
        output, _ = await process.communicate()
        found: dict[str, Any] = json.loads(output)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if REASON:
        pytest.skip(REASON)
    directory = tmp_path_factory.mktemp("dns")
    conf = directory / "resolv.conf"
    environment = {"ZTUN_RESOLV_CONF": str(conf), "RUST_LOG": "info,dns=debug"}
    with InpodWorld(directory, environment=environment, agent_options=()) as world:
        resolver = world.network.two_family_pod("resolver")
        conf.write_text(f"nameserver {resolver.ip}\n")
        near, far = world.node("near"), world.node("far")
        client, server = world.pod("client", "near"), world.pod("server", "far")
        ENTRY["spec"]["endpoints"][0]["address"] = server.ip  # type: ignore[index]
        world.documents += [ENTRY, HEADLESS]
        world.configure()
        world.settle("each.default.svc.cluster.local", "db.example.com", "other.example.com")
        scene = Scene(world, near, far, client, server, resolver)
        scene.resolv_conf()
        yield scene


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


@pytest_asyncio.fixture
async def nameserver(scene: Scene) -> AsyncIterator[InsideNameserver]:
    async with InsideNameserver(scene.resolver.namespace) as nameserver:
        yield nameserver


@pytest.mark.asyncio
async def test_the_c_library_finds_what_the_mesh_knows(scene: Scene, nameserver: InsideNameserver) -> None:
    full = "echo.default.svc.cluster.local"
    found = await scene.look_up("echo", "echo.default", "echo.default.svc", full, f"{full}.")
    assert list(found.values()) == [[VIP, VIP6]] * 5
    found = await scene.look_up("each", "server.each", "db.example.com", "other.example.com")
    assert found["each"] == found["server.each"] == [scene.server.ip, scene.server.ip6]
    for host in ("db.example.com", "other.example.com"):
        v6, v4 = found[host]
        assert v4.startswith("240.240.")
        assert v6.startswith("2001:2::f0f0:")
    assert found["db.example.com"] != found["other.example.com"]
    assert nameserver.asked == []


@pytest.mark.asyncio
async def test_other_names_come_from_the_nameserver_of_the_node(
    scene: Scene, nameserver: InsideNameserver
) -> None:
    """It is asked from the pod's own address; the pod itself has another one in its resolv.conf."""

    def behave(asked: Asked) -> None:
        question = asked.message.question[0]
        if question.name.to_text() == "www.example.org." and question.rdtype == 1:
            asked.send(asked.response("www.example.org. 60 IN A 192.0.2.7"))
        else:
            asked.send(asked.response(rcode=dns.rcode.NXDOMAIN))

    nameserver.behave = behave
    before = metric(scene.near.proxy, "istio_dns_upstream_requests_total")
    found = await scene.look_up("www.example.org.", "nobody.example.org.")
    assert found == {"www.example.org.": ["192.0.2.7"], "nobody.example.org.": socket.EAI_NONAME}
    assert {asked.peer[0] for asked in nameserver.asked} == {scene.client.ip}
    assert metric(scene.near.proxy, "istio_dns_upstream_requests_total") >= before + 4


@pytest.mark.asyncio
@pytest.mark.parametrize("tcp", [False, True])
async def test_any_nameserver_that_a_pod_asks_is_the_proxy(
    scene: Scene, nameserver: InsideNameserver, tcp: bool
) -> None:
    nameserver.behave = answering("_x._tcp.example.org. 60 IN SRV 1 2 3 x.")
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    for family, where in ((socket.AF_INET, "203.0.113.53"), (socket.AF_INET6, "2001:db8::53")):
        for name, rdtype, authoritative in (
            ("echo.default", "A", True),
            ("_x._tcp.example.org", "SRV", False),
        ):

            def make(family: int = family) -> socket.socket:
                sock = socket.socket(family, kind)
                sock.setblocking(False)
                return sock

            sock = scene.client.inside(make)
            await asyncio.get_running_loop().sock_connect(sock, (where, 53))
            query = dns.message.make_query(name, rdtype)
            wire = query.to_wire()
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, len(wire).to_bytes(2, "big") + wire if tcp else wire)
            data = await loop.sock_recv(sock, 65_535)
            sock.close()
            reply = dns.message.from_wire(data[2:] if tcp else data)
            assert query.is_response(reply)
            assert reply.answer
            assert bool(reply.flags & dns.flags.AA) is authoritative
    assert {(asked.udp, asked.peer[0]) for asked in nameserver.asked} == {(not tcp, scene.client.ip)}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("host", "port"), [("echo", 80), ("db.example.com", 3306), ("server.each", APP_PORT)]
)
async def test_a_connection_by_name_goes_through_the_mesh(
    scene: Scene, wires: Wires, host: str, port: int
) -> None:
    ips = await scene.look_up(host)
    application = await listen(wires, scene.server.namespace, scene.server.ip)
    application6 = await listen(wires, scene.server.namespace, scene.server.ip6)
    before = metric(
        scene.far.proxy, "istio_tcp_connections_opened_total", connection_security_policy="mutual_tls"
    )
    process = await asyncio.create_subprocess_exec(
        *scene.command(CALL, host, str(port)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    accepting = [asyncio.ensure_future(one.accept()) for one in (application, application6)]
    done, others = await asyncio.wait(accepting, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    server = done.pop().result()
    assert server.peer[0] in (scene.client.ip, scene.client.ip6)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    peer = (await process.stdout.readline()).decode().strip()
    assert peer in ips[host]
    await server.send(b"through the mesh")
    assert await server.receive(16) == b"through the mesh"
    server.end()
    assert await process.wait() == 0
    await wait_for(
        scene.far.proxy,
        "counted the connection",
        lambda: (
            metric(
                scene.far.proxy, "istio_tcp_connections_opened_total", connection_security_policy="mutual_tls"
            )
            > before
        ),
    )


@pytest.mark.asyncio
async def test_the_log_says_who_asked_for_what(scene: Scene) -> None:
    await scene.look_up("echo.default.svc.cluster.local.")

    def written() -> list[dict[str, Any]]:
        return [
            line
            for line in lines(scene.near.proxy)
            if line.get("scope") == "dns"
            and line.get("domain") == "echo.default.svc.cluster.local."
            and line.get("query") == "A"
        ]

    await wait_for(scene.near.proxy, "logged the query", lambda: bool(written()))
    line = written()[-1]
    assert line["level"] == "debug"
    assert (line["src.workload"], line["src.namespace"]) == ("client", "default")
    assert (line["result"], line["endpoints"]) == ("success", 1)


@pytest.mark.asyncio
async def test_queries_to_localhost_are_left_alone(scene: Scene, wires: Wires) -> None:
    """A resolver that the pod runs itself keeps working."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 53))
        sock.setblocking(False)
        return sock

    loop = asyncio.get_running_loop()
    server = scene.client.inside(make)
    client = scene.client.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect(("127.0.0.1", 53))
    client.send(b"hello")
    assert await loop.sock_recv(server, 100) == b"hello"
    server.close()
    client.close()
