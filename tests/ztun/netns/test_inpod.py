"""In-pod mode as pods see it: what is captured, by whom it is carried, and what is left alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.ztun.agent.pods import PATIENCE_SECONDS, Pod
from tests.ztun.netns.connections import APP_PORT, close, dial, listen
from tests.ztun.netns.inpod import SERVICE_PORT, VIP, VIP6, InpodNode, InpodWorld
from tests.ztun.netns.namespaces import missing
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import completed, completion, exchange, lines, metric, wait_for
from ztun.mesh.model import join_host_port

pytestmark = pytest.mark.netns

REASON = missing()
STRICT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "default", "namespace": "default"},
    "spec": {"mtls": {"mode": "STRICT"}},
}
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@dataclass
class Scene:
    """``client`` and ``neighbour`` on node ``near``, ``server`` on node ``far``, a stranger on neither."""

    world: InpodWorld
    near: InpodNode
    far: InpodNode
    client: Pod
    neighbour: Pod
    server: Pod
    stranger: Pod


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if REASON:
        pytest.skip(REASON)
    with InpodWorld(tmp_path_factory.mktemp("inpod")) as world:
        near, far = world.node("near"), world.node("far")
        client, neighbour = world.pod("client", "near"), world.pod("neighbour", "near")
        server = world.pod("server", "far")
        world.settle()
        yield Scene(world, near, far, client, neighbour, server, world.network.two_family_pod("stranger"))


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


@pytest.mark.asyncio
@FAMILIES
@pytest.mark.parametrize("target", ["server", "neighbour", "service"])
async def test_a_pod_reaches_pods_and_services_through_tunnels(
    scene: Scene, wires: Wires, target: str, family: int
) -> None:
    """The neighbour is on the same node; its traffic has a tunnel too."""
    called = scene.neighbour if target == "neighbour" else scene.server
    node = scene.near if target == "neighbour" else scene.far
    application = await listen(wires, called.namespace, called.address(family))
    before = len(completed(node.proxy))
    vip = VIP if family == 4 else VIP6
    address = (vip, SERVICE_PORT) if target == "service" else (called.address(family), APP_PORT)
    client = await dial(wires, scene.client.namespace, *address)
    server = await application.accept()
    assert server.peer[0] == scene.client.address(family)
    assert server.local == (called.address(family), APP_PORT)
    await exchange(client, server)
    await close(client, server)
    name = "neighbour" if target == "neighbour" else "server"
    wanted = {
        "direction": "inbound",
        "src.identity": "spiffe://cluster.local/ns/default/sa/client",
        "dst.identity": f"spiffe://cluster.local/ns/default/sa/{name}",
        "error": None,
    }
    record = await completion(node.proxy, before, wanted)
    assert record["dst.hbone_addr"].endswith(f":{APP_PORT}")


@pytest.mark.asyncio
async def test_what_the_server_says_first_comes_first(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace)
    client = await dial(wires, scene.client.namespace, scene.server.ip)
    server = await application.accept()
    await server.send(b"220 hello")
    assert await client.receive(9) == b"220 hello"
    await close(client, server)


@pytest.mark.asyncio
async def test_a_client_that_has_ended_still_gets_its_answer(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace)
    client = await dial(wires, scene.client.namespace, scene.server.ip)
    server = await application.accept()
    await client.send(b"question")
    client.end()
    assert await server.receive_all() == b"question"
    answer = bytes(range(256)) * 4096
    await asyncio.gather(server.send(answer), _expect(client.receive(len(answer)), answer))
    server.end()
    assert await client.ending() == "eof"


async def _expect(work: object, wanted: bytes) -> None:
    assert await work == wanted  # type: ignore[misc]


@pytest.mark.asyncio
async def test_a_reset_is_carried(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace)
    client = await dial(wires, scene.client.namespace, scene.server.ip)
    server = await application.accept()
    await exchange(client, server)
    server.reset()
    assert await client.ending() == "reset"


@pytest.mark.asyncio
async def test_a_pod_that_calls_its_own_service_reaches_itself(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace)
    client = await dial(wires, scene.server.namespace, VIP, SERVICE_PORT)
    server = await application.accept()
    assert server.peer[0] == scene.server.ip
    await exchange(client, server)
    await close(client, server)


@pytest.mark.asyncio
@FAMILIES
async def test_what_goes_outside_the_mesh_is_passed_on_in_plain(
    scene: Scene, wires: Wires, family: int
) -> None:
    ip = scene.stranger.address(family)
    application = await listen(wires, scene.stranger.namespace, ip)
    before = len(completed(scene.near.proxy))
    client = await dial(wires, scene.client.namespace, ip)
    server = await application.accept()
    assert server.peer[0] == scene.client.address(family)
    await exchange(client, server)
    await close(client, server)
    record = await completion(scene.near.proxy, before, {"src.addr": join_host_port(*client.local)})
    assert record["direction"] == "outbound"
    assert "dst.hbone_addr" not in record


@pytest.mark.asyncio
@FAMILIES
async def test_plaintext_of_a_stranger_comes_with_its_address(
    scene: Scene, wires: Wires, family: int
) -> None:
    ip = scene.server.address(family)
    application = await listen(wires, scene.server.namespace, ip)
    before = len(completed(scene.far.proxy))
    client = await dial(wires, scene.stranger.namespace, ip)
    server = await application.accept()
    assert server.peer[0] == scene.stranger.address(family)
    await exchange(client, server)
    await close(client, server)
    record = await completion(scene.far.proxy, before, {"src.addr": join_host_port(*client.local)})
    assert record["direction"] == "inbound"
    assert "src.identity" not in record
    assert "dst.hbone_addr" not in record


@pytest.mark.asyncio
async def test_plaintext_of_a_stranger_is_refused_when_strict(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace)
    loads = scene.world.loads("far")
    scene.world.configure(STRICT)
    try:
        await wait_for(scene.far.proxy, "strict", lambda: scene.world.loads("far") > loads)
        with pytest.raises(ConnectionResetError):
            stranger = await dial(wires, scene.stranger.namespace, scene.server.ip)
            await stranger.send(b"let me in")
            await stranger.receive(1)
        member = await dial(wires, scene.client.namespace, scene.server.ip)
        await exchange(member, await application.accept())
        assert application.accepted == 1
    finally:
        scene.world.configure()
        await wait_for(scene.far.proxy, "permissive", lambda: scene.world.loads("far") > loads + 1)


def carried(scene: Scene) -> float:
    """How many connections both proxies have carried or refused."""
    return sum(
        metric(node.proxy, "istio_tcp_connections_opened_total")
        + sum("connection" in str(line.get("message")) for line in lines(node.proxy))
        for node in (scene.near, scene.far)
    )


@pytest.mark.asyncio
@FAMILIES
@pytest.mark.parametrize("way", ["localhost", "own pod"])
async def test_traffic_inside_the_pod_is_left_alone(
    scene: Scene, wires: Wires, way: str, family: int
) -> None:
    localhost = "127.0.0.1" if family == 4 else "::1"
    ip = localhost if way == "localhost" else scene.client.address(family)
    application = await listen(wires, scene.client.namespace, ip, 9100)
    before = carried(scene)
    client = await dial(wires, scene.client.namespace, ip, 9100)
    server = await application.accept()
    assert server.peer[0] == ip
    await exchange(client, server)
    await close(client, server)
    assert carried(scene) == before


def test_udp_is_left_alone(scene: Scene) -> None:
    def bound(ip: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_SECONDS)
        sock.bind((ip, 9300))
        return sock

    client = scene.client.inside(lambda: bound(scene.client.ip))
    server = scene.server.inside(lambda: bound(scene.server.ip))
    with client, server:
        client.sendto(b"question", (scene.server.ip, 9300))
        assert server.recvfrom(100) == (b"question", (scene.client.ip, 9300))
        server.sendto(b"answer", (scene.client.ip, 9300))
        assert client.recvfrom(100) == (b"answer", (scene.server.ip, 9300))


MALICIOUS = [
    (source, target, port)
    for source, target in (
        ("client", "own pod"),
        ("client", "localhost"),
        ("client", "other pod"),
        ("stranger", "captured pod"),
    )
    for port in (15001, 15006, 15008, 15080, 15000, 15020, 15021)
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("source", "target", "port"), MALICIOUS)
async def test_malicious_calls(scene: Scene, wires: Wires, source: str, target: str, port: int) -> None:
    """ztunnel's ``malicious_calls_inpod``: no port of the proxy says a word, and nothing goes round in circles."""
    caller = scene.client if source == "client" else scene.stranger
    ip = {"own pod": scene.client.ip, "localhost": "127.0.0.1"}.get(target, scene.server.ip)
    inside = target in ("own pod", "localhost")
    proxies = (scene.near.proxy, scene.far.proxy)
    before = [proxy.descriptors() for proxy in proxies]
    answer, outcome = b"", "request"
    try:
        client = await dial(wires, caller.namespace, ip, port)
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        while data := await client.reader.read(1024):
            answer += data
    except ConnectionRefusedError:
        outcome = "connection"
    except ConnectionResetError:
        pass
    listening = port in (15001, 15006, 15008)
    assert outcome == ("connection" if inside and not listening else "request")
    assert b"HTTP" not in answer
    assert len(answer) < 100  # at most a TLS alert
    for proxy, count in zip(proxies, before, strict=True):
        await wait_for(
            proxy,
            "rid of the connection",
            lambda proxy=proxy, count=count: proxy.descriptors() <= count + 2,  # type: ignore[misc]
        )


@pytest.mark.asyncio
async def test_a_gibibyte_arrives_as_it_was_sent(scene: Scene) -> None:
    """Blocks that differ from each other, so that one which is lost, repeated or out of its place shows."""
    block, blocks = 1 << 20, 1024

    def content(number: int) -> bytes:
        return number.to_bytes(4, "big") * (block // 4)

    listener = scene.server.inside(lambda: socket.create_server((scene.server.ip, 9400)))

    def receive() -> int:
        taken, _ = listener.accept()
        with taken:
            buffer = bytearray(block)
            for number in range(blocks):
                view = memoryview(buffer)
                while view:
                    count = taken.recv_into(view)
                    assert count, f"ended in block {number}"
                    view = view[count:]
                assert buffer == content(number), f"block {number} is another one"
            assert taken.recv(1) == b""
        return blocks

    def send() -> None:
        with scene.client.inside(lambda: socket.create_connection((scene.server.ip, 9400))) as sock:
            for number in range(blocks):
                sock.sendall(content(number))

    with listener:
        received, _ = await asyncio.gather(asyncio.to_thread(receive), asyncio.to_thread(send))
    assert received == blocks


@pytest.mark.asyncio
async def test_many_connections_at_once(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace, port=9200, echo=True)

    async def one(number: int) -> None:
        client = await dial(wires, scene.client.namespace, scene.server.ip, 9200)
        text = b"%05d" % number
        await client.send(text)
        client.end()
        assert await client.receive_all() == text

    await asyncio.gather(*(one(number) for number in range(100)))
    assert application.accepted == 100


@pytest.mark.asyncio
async def test_a_pod_waits_for_the_mesh_to_know_it(scene: Scene, wires: Wires) -> None:
    application = await listen(wires, scene.server.namespace, port=9500)
    pod = scene.world.network.two_family_pod("early")
    await asyncio.to_thread(scene.near.enroll, "early", pod)
    client = await dial(wires, pod.namespace, scene.server.ip, 9500)
    scene.world.members["early"] = (pod, "near")
    scene.world.configure()
    server = await application.accept()
    await exchange(client, server)
    assert server.peer[0] == pod.ip


@pytest.mark.asyncio
async def test_a_pod_that_the_mesh_knows_under_another_account_is_refused(scene: Scene, wires: Wires) -> None:
    await listen(wires, scene.server.namespace, port=9600)
    pod = scene.world.network.two_family_pod("impostor")
    scene.world.members["impostor"] = (pod, "near")
    loads = scene.world.loads("near")
    scene.world.configure()
    await wait_for(scene.near.proxy, "following", lambda: scene.world.loads("near") > loads)
    await asyncio.to_thread(lambda: scene.near.enroll("impostor", pod, account="server"))
    with pytest.raises(ConnectionResetError):
        client = await dial(wires, pod.namespace, scene.server.ip, 9600)
        await client.receive(1)

    def refused() -> bool:
        return any(
            line.get("error.code") == "unknown_source" and line["src.addr"].startswith(f"{pod.ip}:")
            for line in lines(scene.near.proxy)
        )

    await wait_for(scene.near.proxy, "refusing", refused)


@pytest.mark.asyncio
async def test_a_pod_that_leaves_the_documents_is_cut_off_until_it_is_back(
    scene: Scene, wires: Wires
) -> None:
    """Nobody could say any more which policies apply to it."""
    application = await listen(wires, scene.neighbour.namespace, port=9700)
    bystander = await dial(wires, scene.client.namespace, scene.neighbour.ip, 9700)
    beside = await application.accept()
    there = await listen(wires, scene.server.namespace, port=9700)
    standing = await dial(wires, scene.client.namespace, scene.server.ip, 9700)
    await exchange(standing, await there.accept())
    member = scene.world.members.pop("server")
    try:
        scene.world.configure()
        assert await standing.ending() == "reset"
    finally:
        scene.world.members["server"] = member
        scene.world.configure()
    again = await dial(wires, scene.server.namespace, scene.neighbour.ip, 9700)
    await exchange(again, await application.accept())
    await exchange(bystander, beside)


@pytest.mark.asyncio
async def test_nobody_is_reached_in_plain_while_the_destination_is_in_the_mesh(
    scene: Scene, wires: Wires
) -> None:
    """A port that nobody listens on: the tunnel says so, and there is no second way."""
    with pytest.raises(ConnectionResetError):
        client = await dial(wires, scene.client.namespace, scene.server.ip, 9)
        await client.receive(1)
