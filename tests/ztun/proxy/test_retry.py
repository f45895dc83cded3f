"""One endpoint fails before a byte was consumed: the connection goes to another one, once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from h2.connection import H2Connection

from tests.certs.handshake import certificate
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Mesh, Pair
from tests.ztun.proxy.rogue import H2Server, RogueServer, answer_ok, server_context
from ztun.mesh.model import Authorization, Match, PolicyAction, PolicyScope
from ztun.net.app_socket import AppSocket

pytestmark = pytest.mark.net

VIP = "10.10.0.1"
ROUNDS = 12  # an endpoint that is drawn at random is drawn at least once, all but always


@pytest.fixture
def service(mesh: Mesh) -> Mesh:
    """A client on node ``near`` and a service of two pods: ``good`` on ``far``, ``bad`` on ``broken``."""
    mesh.service("echo", {80: APP_PORT}, VIP)
    endpoint = {"echo": {80: APP_PORT}}
    mesh.pod("client", "near")
    mesh.pod("good", "far", services=endpoint)
    mesh.pod("bad", "broken", services=endpoint)
    return mesh


def ip_of(mesh: Mesh, name: str) -> str:
    return mesh.workloads[name].addresses[0]


async def refuses(mesh: Mesh, wires: Wires, directory: Path) -> None:
    """Nobody listens on its HBONE port."""


async def has_another_identity(mesh: Mesh, wires: Wires, directory: Path) -> None:
    context = server_context(directory, certificate(mesh.ca.authority, "good"))
    await RogueServer(wires).listen(ip_of(mesh, "bad"), context)


async def hangs_up(mesh: Mesh, wires: Wires, directory: Path) -> None:
    class HangsUp(RogueServer):
        async def serve(self, reader: object, writer: object) -> None:
            writer.close()  # type: ignore[attr-defined]

    await HangsUp(wires).listen(ip_of(mesh, "bad"), None)


async def has_no_application(mesh: Mesh, wires: Wires, directory: Path) -> None:
    await mesh.start("broken")


async def goes_away(mesh: Mesh, wires: Wires, directory: Path) -> None:
    def goaway(connection: object, stream: int) -> None:
        connection.close_connection(last_stream_id=0)  # type: ignore[attr-defined]

    context = server_context(directory, certificate(mesh.ca.authority, "bad"))
    await H2Server(wires, answer=goaway).listen(ip_of(mesh, "bad"), context)


Failure = Callable[[Mesh, Wires, Path], Awaitable[None]]


@pytest.mark.asyncio
@pytest.mark.parametrize("fail", [refuses, has_another_identity, hangs_up, has_no_application, goes_away])
async def test_connection_goes_to_the_other_endpoint(
    service: Mesh, wires: Wires, tmp_path: Path, fail: Failure
) -> None:
    good = await wires.application(ip_of(service, "good"), APP_PORT)
    await fail(service, wires, tmp_path)
    await service.start("near", "far")
    entry = await service.enter(service.workloads["client"], VIP, 80)
    near = service.nodes["near"]
    for number in range(1, ROUNDS + 1):
        client = await wires.dial(entry)
        client.writer.write(b"request")  # before anybody has answered
        client.end()
        server = await good.accept()
        assert await server.receive_all() == b"request"
        server.end()
        assert await client.ending() == "eof"
        report = await near.journal.end(number)
        assert code(report) == ""
        assert report.destination_addr == f"{ip_of(service, 'good')}:15008"
        assert report.hbone_addr == f"{ip_of(service, 'good')}:{APP_PORT}"
        assert report.destination is service.workloads["good"]
        assert str(report.destination_identity) == str(service.workloads["good"].identity)
    chosen = [one.destination for one in near.journal.opens]
    assert service.workloads["bad"] in chosen
    failed = near.sample("istio_tcp_connections_failed_total", destination_workload="bad")
    assert failed == chosen.count(service.workloads["bad"])
    assert near.sample("istio_tcp_connections_opened_total", destination_workload="good") == ROUNDS
    closed = near.sample("istio_tcp_connections_closed_total", destination_workload="good")
    assert closed == ROUNDS
    assert near.sample("istio_tcp_received_bytes_total", destination_workload="bad") == 0
    assert near.sample("istio_tcp_received_bytes_total", destination_workload="good") == ROUNDS * 7


@pytest.mark.asyncio
async def test_denied_connection_is_not_tried_elsewhere(service: Mesh, wires: Wires) -> None:
    """A retry would turn a policy into a matter of luck."""
    service.policies["no"] = Authorization(
        name="no",
        namespace="default",
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=PolicyAction.DENY,
        rules=(((Match(destination_ports=(APP_PORT,)),),),),
    )
    service.workloads["bad"] = replace(service.workloads["bad"], authorization_policies=("default/no",))
    good = await wires.application(ip_of(service, "good"), APP_PORT)
    bad = await wires.application(ip_of(service, "bad"), APP_PORT)
    await service.start()
    entry = await service.enter(service.workloads["client"], VIP, 80)
    journal = service.nodes["near"].journal
    for number in range(1, ROUNDS + 1):
        client = await wires.dial(entry)
        await journal.until(journal.opens, number)
        if journal.opens[-1].destination is service.workloads["bad"]:
            assert await client.ending() == "reset"
        else:
            server = await good.accept()
            server.reset()
            assert await client.ending() == "reset"
    codes = [code(one) for one in journal.ends]
    refused = codes.count("http_status_401")
    assert len(codes) == ROUNDS
    assert 0 < refused < ROUNDS
    assert refused == len(service.nodes["broken"].journal.ends)
    assert (good.accepted, bad.accepted) == (ROUNDS - refused, 0)


@pytest.mark.asyncio
async def test_first_failure_is_reported_when_both_fail(service: Mesh, wires: Wires) -> None:
    await service.start("near", "broken")  # of ``good`` not even the proxy is there
    entry = await service.enter(service.workloads["client"], VIP, 80)
    near = service.nodes["near"]
    kinds = set()
    for number in range(1, ROUNDS + 1):
        client = await wires.dial(entry)
        assert await client.ending() == "reset"
        report = await near.journal.end(number)
        first = near.journal.opens[number - 1].destination
        assert report.destination is first
        assert code(report) == ("http_status_503" if first is service.workloads["bad"] else "connect_refused")
        kinds.add(code(report))
    assert len(kinds) == 2
    assert near.sample("istio_tcp_connections_opened_total") == ROUNDS
    assert near.sample("istio_tcp_connections_failed_total", response_flags="CONNECT") == ROUNDS


@pytest.mark.asyncio
async def test_an_address_outside_the_mesh_is_dialled_once(
    pair: Pair, wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other endpoint, and a black hole would take twice as long to be noticed."""
    dialled: list[tuple[str, int]] = []
    await pair.start("near")
    site = pair.near.plane.home
    plain = site.dial_plain

    async def dial_plain(address: tuple[str, int], *rest: Any, **more: Any) -> AppSocket:
        dialled.append(address)
        return await plain(address, *rest, **more)

    monkeypatch.setattr(site, "dial_plain", dial_plain)
    nobody = pair.addresses.take()
    client = await wires.dial(await pair.enter(pair.client, nobody))
    assert await client.ending() == "reset"
    assert code(await pair.near.journal.end()) == "connect_refused"
    assert dialled == [(nobody, APP_PORT)]


@pytest.mark.asyncio
async def test_refused_stream_is_tried_again_on_a_new_tunnel(
    service: Mesh, wires: Wires, tmp_path: Path
) -> None:
    """A peer that refuses a stream did not look at it, so even the only endpoint is asked again."""
    del service.workloads["good"]
    streams = []

    def refuse_first(connection: object, stream: int) -> None:
        streams.append(stream)
        if len(streams) == 1:
            connection.reset_stream(stream, 7)  # type: ignore[attr-defined]
        else:
            answer_ok(connection, stream)  # type: ignore[arg-type]

    server = H2Server(wires, answer=refuse_first)
    await server.listen(
        ip_of(service, "bad"), server_context(tmp_path, certificate(service.ca.authority, "bad"))
    )
    await service.start("near")
    client = await wires.dial(await service.enter(service.workloads["client"], VIP, 80))
    await client.send(b"hello")
    assert await client.receive(5) == b"hello"
    assert len(streams) == 2


@pytest.mark.asyncio
async def test_a_tunnel_that_had_died_unnoticed_is_replaced(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    """The only endpoint is asked again over a new tunnel when the old one answers the request with RST."""

    def dies_once(connection: H2Connection, stream: int) -> None:
        if stream == 3 and len(terminator.connections) == 1:
            terminator.connections[0][1].transport.abort()
        else:
            answer_ok(connection, stream)

    terminator = H2Server(wires, answer=dies_once)
    await terminator.listen(
        pair.server_ip, server_context(tmp_path, certificate(pair.ca.authority, "server"))
    )
    await pair.start("near")
    entry = await pair.enter_server()
    for _ in range(3):
        client = await wires.dial(entry)
        await client.send(b"echo")
        assert await client.receive(4) == b"echo"
    assert len(terminator.connections) == 2
