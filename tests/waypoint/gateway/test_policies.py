"""Who may come in: the policies that select the gateway, on new and on open connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.waypoint.gateway.edge import SERVICE_PORT, Edge, gateway, rules, server, to
from tests.waypoint.server.ground import Documents, logged
from tests.ztun.proxy.applications import Wire, Wires

pytestmark = pytest.mark.net

GATEWAY = "ingressgateway-1"
LISTENING: Documents = [
    gateway(GATEWAY, server(SERVICE_PORT)),
    rules("echo", [GATEWAY], tcp=[{"route": [to("echo-server")]}]),
]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(tmp_path_factory.mktemp("policies")) as edge:
        edge.documents = LISTENING
        edge.start()
        yield edge


def policy(action: str, rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "outside", "namespace": "istio-system"},
        "spec": {"selector": {"matchLabels": {"istio": GATEWAY}}, "action": action, "rules": [rule]},
    }


def coming_from(ip: str) -> dict[str, Any]:
    return {"from": [{"source": {"ipBlocks": [ip]}}]}


async def answer(edge: Edge, wires: Wires, source: str | None = None) -> bytes:
    """What a new connection is answered; empty when it was ended, perhaps before it knew of its beginning."""
    try:
        return await echo(await wires.dial(edge.address(SERVICE_PORT), source=source))
    except ConnectionError:
        return b""


async def echo(wire: Wire) -> bytes:
    try:
        await wire.send(b"test\n")
        return await wire.receive(len(b"hello test\n"))
    except (ConnectionError, EOFError):
        return b""


@pytest.mark.asyncio
async def test_an_address_that_is_denied_gets_nothing_through(edge: Edge, wires: Wires) -> None:
    bad, good = edge.block.take(), edge.block.take()
    await edge.apply([*LISTENING, policy("DENY", coming_from(bad))])
    assert await answer(edge, wires, bad) == b""
    assert await answer(edge, wires, good) == b"hello test\n"
    record = await logged(edge.gateway, lambda one: one.get("error.code") == "policy_rejection")
    assert "istio-system/outside" in record["error"]
    assert str(record["src.addr"]).startswith(f"{bad}:")


@pytest.mark.asyncio
async def test_open_connections_are_judged_again(edge: Edge, wires: Wires) -> None:
    await edge.apply(LISTENING)
    bad, good = edge.block.take(), edge.block.take()
    cut = await wires.dial(edge.address(SERVICE_PORT), source=bad)
    staying = await wires.dial(edge.address(SERVICE_PORT), source=good)
    assert (await echo(cut), await echo(staying)) == (b"hello test\n", b"hello test\n")
    await edge.apply([*LISTENING, policy("DENY", coming_from(bad))])
    assert await cut.ending() == "reset"
    assert await echo(staying) == b"hello test\n"
    await logged(edge.gateway, lambda one: one.get("error.code") == "policy_late_rejection")


@pytest.mark.asyncio
async def test_policies_outlive_the_document_of_the_gateways_pod(edge: Edge, wires: Wires) -> None:
    bad = edge.block.take()
    await edge.apply([*LISTENING, policy("DENY", coming_from(bad))])
    own = edge.pods.pop()
    try:
        edge.write()
        await logged(edge.gateway, lambda one: one.get("code") == "GW-UNKNOWN")
        assert await answer(edge, wires, bad) == b""
        assert await answer(edge, wires) == b"hello test\n"
    finally:
        edge.pods.append(own)


@pytest.mark.asyncio
async def test_the_port_of_a_policy_is_the_one_that_is_listened_on(edge: Edge, wires: Wires) -> None:
    to_port = {"to": [{"operation": {"ports": [str(SERVICE_PORT)]}}]}
    await edge.apply([*LISTENING, policy("ALLOW", to_port)])
    assert await answer(edge, wires) == b"hello test\n"
    other_port = {"to": [{"operation": {"ports": ["1"]}}]}
    await edge.apply([*LISTENING, policy("ALLOW", other_port)])
    assert await answer(edge, wires) == b""


@pytest.mark.asyncio
async def test_a_strict_mesh_has_gateways_for_clients_outside(edge: Edge, wires: Wires) -> None:
    """PeerAuthentication is for workloads. The servers behind still take the gateway's tunnels only."""
    strict = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "istio-system"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    await edge.apply([*LISTENING, strict])
    wire = await wires.dial(edge.address(SERVICE_PORT))
    assert await echo(wire) == b"hello test\n"
    await edge.apply([*LISTENING, strict])
    assert await echo(wire) == b"hello test\n"
