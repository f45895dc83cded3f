"""What a peer with a good certificate may ask a pod's proxy for, and what it may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from h2.events import DataReceived, StreamEnded, StreamReset

from tests.certs.handshake import certificate
from tests.ztun.proxy.applications import Application, Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Pair, until
from tests.ztun.proxy.rogue import H2Client, client_context
from ztun.hbone.settings import TunnelSettings
from ztun.mesh.baggage import Baggage, encode_baggage, parse_baggage
from ztun.mesh.model import ApplicationTunnel, AppTunnelProtocol, ServicePort
from ztun.net.proxy_protocol import SIGNATURE

pytestmark = pytest.mark.net

SERVICE = "echo.default.svc.cluster.local"
VIP = "10.10.0.1"


@dataclass
class Peer:
    """A foreign client with the client pod's certificate, and what it talks to."""

    pair: Pair
    client: H2Client
    application: Application

    async def ask(self, authority: str, *headers: tuple[str, str]) -> dict[str, str]:
        return await self.client.answer(self.client.connect(authority, *headers))


async def start(pair: Pair, wires: Wires, directory: Path, **settings: object) -> Peer:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start("far", **settings)
    context = client_context(directory, certificate(pair.ca.authority))
    client = await H2Client.dial(wires, pair.server_ip, context, source=pair.client.addresses[0])
    return Peer(pair, client, application)


@pytest.fixture
def served(pair: Pair) -> Pair:
    """The server is an endpoint of a service with a numbered and a named target port."""
    service = pair.service("echo", {80: APP_PORT}, VIP)
    pair.services["echo"] = replace(service, ports={**service.ports, 81: ServicePort(81, 0, "named")})
    del pair.workloads["server"]
    pair.server = pair.pod("server", "far", services={"echo": {80: APP_PORT, 81: APP_PORT}})
    return pair


@pytest_asyncio.fixture
async def peer(served: Pair, wires: Wires, tmp_path: Path) -> AsyncIterator[Peer]:
    yield await start(served, wires, tmp_path)


@pytest.mark.asyncio
@pytest.mark.parametrize("authority", ["pod", f"{SERVICE}:80", f"{SERVICE}:81", f"{SERVICE.upper()}:80"])
async def test_what_the_pod_serves(peer: Peer, authority: str) -> None:
    if authority == "pod":
        authority = f"{peer.pair.server_ip}:{APP_PORT}"
    stream = peer.client.connect(authority)
    headers = await peer.client.answer(stream)
    assert headers[":status"] == "200"
    server = await peer.application.accept()
    assert server.peer[0] == peer.pair.client.addresses[0]
    peer.client.send(stream, b"question", end=True)
    assert await server.receive_all() == b"question"
    await server.send(b"answer")
    server.end()
    assert (await peer.client.event(DataReceived, stream)).data == b"answer"
    await peer.client.event(StreamEnded, stream)
    report = await peer.pair.far.journal.end()
    assert (report.service, report.hbone_addr, code(report)) == (SERVICE, authority, "")


@pytest.mark.asyncio
async def test_answer_tells_who_the_destination_is(peer: Peer) -> None:
    headers = await peer.ask(f"{peer.pair.server_ip}:{APP_PORT}")
    assert headers["baggage"] == encode_baggage(peer.pair.server)
    assert parse_baggage([headers["baggage"]]).workload_name == "server"


@pytest.mark.asyncio
async def test_answer_tells_nothing_when_that_is_switched_off(
    served: Pair, wires: Wires, tmp_path: Path
) -> None:
    peer = await start(served, wires, tmp_path, response_baggage=False)
    assert await peer.ask(f"{served.server_ip}:{APP_PORT}") == {":status": "200"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("authority", "status", "why"),
    [
        ("client:9000", "400", "ip_mismatch"),
        (f"127.0.0.1:{APP_PORT}", "400", "ip_mismatch"),
        (f"{VIP}:80", "400", "ip_mismatch"),
        (f"[::1]:{APP_PORT}", "400", "ip_mismatch"),
        ("server:15001", "503", "self_call"),
        ("server:15006", "503", "self_call"),
        ("server:15008", "503", "self_call"),
        ("server:15080", "503", "self_call"),
        ("other.default.svc.cluster.local:80", "503", "no_hostname"),
        (f"{SERVICE}:82", "503", "no_port_for_services"),
        ("server:9009", "503", "connect_refused"),
        ("server", "400", "bad_authority"),
        ("server:0", "400", "bad_authority"),
        ("server:65536", "400", "bad_authority"),
        ("user@server:9000", "400", "bad_authority"),
        ("server:9000/path", "400", "bad_authority"),
        ("[fe80::1%25eth0]:80", "400", "bad_authority"),
        (":9000", "400", "bad_authority"),
    ],
)
async def test_what_it_does_not_serve(peer: Peer, authority: str, status: str, why: str) -> None:
    pair = peer.pair
    authority = authority.replace("server", pair.server_ip).replace("client", pair.client.addresses[0])
    assert await peer.ask(authority) == {":status": status}
    journal = pair.far.journal
    await until(lambda: bool(journal.ends or journal.refusals))
    assert code((journal.ends + journal.refusals)[0]) == why
    assert peer.application.accepted == 0
    # the tunnel lives on
    assert (await peer.ask(f"{pair.server_ip}:{APP_PORT}"))[":status"] == "200"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "headers",
    [
        ((":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "server:9000")),
        ((":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "server:9000")),
    ],
    ids=["GET", "POST"],
)
async def test_only_connect_is_served(peer: Peer, headers: tuple[tuple[str, str], ...]) -> None:
    stream = peer.client.request(*headers)
    assert await peer.client.answer(stream) == {":status": "400"}
    assert code(await peer.pair.far.journal.refusal()) == "not_connect"
    assert peer.application.accepted == 0


@pytest.mark.asyncio
async def test_payload_of_a_refused_request_is_thrown_away(peer: Peer) -> None:
    stream = peer.client.connect(f"{peer.pair.client.addresses[0]}:{APP_PORT}")
    peer.client.send(stream, b"x" * 1000)
    assert await peer.client.answer(stream) == {":status": "400"}
    assert (await peer.ask(f"{peer.pair.server_ip}:{APP_PORT}"))[":status"] == "200"
    second = peer.client.connect(f"{peer.pair.server_ip}:{APP_PORT}")
    peer.client.send(second, b"y", end=True)
    servers = [await peer.application.accept() for _ in range(2)]
    assert await servers[1].receive_all() == b"y"
    assert peer.application.accepted == 2


@pytest.mark.asyncio
async def test_payload_behind_the_request_is_kept_until_the_application_answers(peer: Peer) -> None:
    stream = peer.client.connect(f"{peer.pair.server_ip}:{APP_PORT}")
    peer.client.send(stream, b"early ", end=False)
    peer.client.send(stream, b"bytes", end=True)
    server = await peer.application.accept()
    assert await server.receive_all() == b"early bytes"


@pytest.mark.asyncio
async def test_claims_of_the_peer_change_nothing(peer: Peer) -> None:
    """``forwarded`` and ``baggage`` are its own words: the certificate and the socket are what counts."""
    other = peer.pair.addresses.take()
    claims = (
        ("forwarded", f"for={other}:1;by=x"),
        ("baggage", "k8s.namespace.name=kube-system,k8s.deployment.name=admin"),
    )
    assert (await peer.ask(f"{peer.pair.server_ip}:{APP_PORT}", *claims))[":status"] == "200"
    server = await peer.application.accept()
    assert server.peer[0] == peer.pair.client.addresses[0]
    report = peer.pair.far.journal.opens[0]
    assert str(report.source_identity) == str(peer.pair.client.identity)
    assert report.source is peer.pair.workloads["client"]


@pytest.mark.asyncio
async def test_address_of_another_pod_does_not_give_its_name(
    served: Pair, wires: Wires, tmp_path: Path
) -> None:
    """The certificate says ``client``, the address is the one of ``victim``: it is counted as nobody, or as who it says
    it is. Its identity is in its certificate, whatever it says.
    """
    victim = served.pod("victim", "near")
    await wires.application(served.server_ip, APP_PORT)
    await served.start("far")
    context = client_context(tmp_path, certificate(served.ca.authority))
    client = await H2Client.dial(wires, served.server_ip, context, source=victim.addresses[0])
    await client.answer(client.connect(f"{served.server_ip}:{APP_PORT}"))
    report = served.far.journal.opens[0]
    assert (report.source, str(report.source_identity)) == (None, str(served.client.identity))
    words = ("baggage", "k8s.cluster.name=remote,k8s.namespace.name=shop"), ("baggage", "service.name=cart")
    await client.answer(client.connect(f"{served.server_ip}:{APP_PORT}", *words))
    report = served.far.journal.opens[1]
    assert report.source == Baggage("remote", "shop", canonical_name="cart")
    assert str(report.source_identity) == str(served.client.identity)
    assert served.far.sample(
        "istio_tcp_connections_opened_total",
        source_cluster="remote",
        source_workload_namespace="shop",
        source_app="cart",
        source_workload="unknown",
        source_principal=str(served.client.identity),
    )


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("network", "trusting", "named"), [("other", True, "cart"), (None, True, "client"), ("other", False, "")]
)
async def test_source_in_another_network_is_who_it_says_it_is(
    served: Pair, wires: Wires, tmp_path: Path, network: str | None, trusting: bool, named: str
) -> None:
    """Its address may be that of a pod here."""
    peer = await start(served, wires, tmp_path, response_baggage=trusting)
    headers = [("baggage", "service.name=cart")]
    if network is not None:
        headers.append(("x-forwarded-network", network))
    await peer.ask(f"{served.server_ip}:{APP_PORT}", *headers)
    source = served.far.journal.opens[0].source
    assert (source.canonical_name if source is not None else "") == named


@pytest.mark.asyncio
async def test_application_behind_a_proxy_protocol_learns_the_client(
    served: Pair, wires: Wires, tmp_path: Path
) -> None:
    tunnel = ApplicationTunnel(AppTunnelProtocol.PROXY, APP_PORT)
    served.server = served.workloads["server"] = replace(served.server, application_tunnel=tunnel)
    peer = await start(served, wires, tmp_path)
    stream = peer.client.connect(f"{VIP}:80")
    assert (await peer.client.answer(stream))[":status"] == "200"
    peer.client.send(stream, b"payload")
    server = await peer.application.accept()
    head = await server.receive(16)
    assert head[:14] == SIGNATURE + b"\x21\x11"
    body = await server.receive(int.from_bytes(head[14:], "big"))
    assert body[4:8] == bytes((10, 10, 0, 1))
    assert body[10:12] == (80).to_bytes(2, "big")
    assert body[:4] == bytes(map(int, served.client.addresses[0].split(".")))
    assert body[12] == 0xD0
    assert body[15:] == str(served.client.identity).encode()
    assert await server.receive(7) == b"payload"


@pytest.mark.asyncio
async def test_streams_beyond_the_limit_are_refused_and_slots_come_back(
    served: Pair, wires: Wires, tmp_path: Path
) -> None:
    """However a stream ends, its slot is free again; otherwise a tunnel would wear out."""
    peer = await start(served, wires, tmp_path, tunnel=TunnelSettings(max_concurrent_streams=2))
    client, target = peer.client, f"{served.server_ip}:{APP_PORT}"
    for _ in range(10):
        for authority, status in ((f"{VIP}:80", "400"), (f"{SERVICE}:82", "503"), (target[:-1] + "9", "503")):
            assert (await peer.ask(authority))[":status"] == status
    for number in range(10):
        first, second = client.connect(target), client.connect(target)
        assert (await client.answer(first))[":status"] == "200"
        assert (await client.answer(second))[":status"] == "200"
        servers = [await peer.application.accept() for _ in range(2)]
        third = client.connect(target)
        assert (await client.event(StreamReset, third)).error_code == 7
        client.connection.reset_stream(first, 8)
        client.flush()
        if number % 2:
            servers[1].reset()
            await client.event(StreamReset, second)
        else:
            client.send(second, b"", end=True)
            for server in servers:
                server.end()
            await client.event(StreamEnded, second)
        await served.far.journal.until(served.far.journal.ends, 10 + 2 * (number + 1))
    assert served.far.sample("ztun_tunnels_open", role="server") == 1


@pytest.mark.asyncio
async def test_nothing_is_left_of_connections_that_ended(pair: Pair, wires: Wires) -> None:
    """No task, no connection, no stream, no slot."""
    application = await wires.echo(pair.server_ip, APP_PORT)
    await pair.start()
    entry = await pair.enter_server()
    for number in range(50):
        client = await wires.dial(entry)
        await client.send(b"x")
        assert await client.receive(1) == b"x"
        if number % 3 == 0:
            client.reset()
        else:
            client.end()
            assert await client.ending() == "eof"
    nobody = await pair.enter(pair.client, pair.server_ip, APP_PORT + 1)
    for _ in range(10):
        assert await (await wires.dial(nobody)).ending() == "reset"
    assert application.accepted == 50
    for node in (pair.near, pair.far):
        await node.journal.until(node.journal.ends, 60)
        await until(lambda node=node: not node.plane.home._tasks)  # type: ignore[misc]
        assert len(node.plane.connections) == 0
        assert node.sample("istio_tcp_connections_opened_total") == 60
        assert node.sample("istio_tcp_connections_closed_total") == 60
    for _, tunnel in pair.near.plane.home.pool.tunnels():
        assert tunnel.stream_count == 0
    for listener in pair.far.inbound._listeners.values():
        for accepted in listener.tunnels:
            assert accepted.connection is not None
            assert accepted.connection.exchange.slots == len(accepted.connection.streams) == 0
