"""Listeners come and go with the configuration; what is established stays, what cannot be done is said."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.process import Process
from tests.waypoint.gateway.edge import (
    SERVICE_PORT,
    Edge,
    gateway,
    refused,
    rules,
    said,
    says,
    server,
    to,
)
from tests.waypoint.server.ground import APP_PORT, Documents, ask, logged, sample, until
from tests.ztun.proxy.applications import Wire, Wires

pytestmark = pytest.mark.net

GATEWAY = "ingressgateway-1"
OTHER_PORT = 19001


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(tmp_path_factory.mktemp("listeners")) as edge:
        edge.start()
        yield edge


@pytest.fixture
def own_edge(tmp_path: Path) -> Iterator[Edge]:
    """One for a test that ends or confuses the gateway; not started."""
    with Edge(tmp_path) as edge:
        yield edge


def open_on(*ports: int, **more: str) -> Documents:
    """A listener on each port, with echo-server behind."""
    return [gateway(GATEWAY, *(server(port) for port in ports), **more), route("echo", "echo-server")]


def route(name: str, host: str, *gateways: str) -> dict[str, object]:
    return rules(name, gateways or [GATEWAY], tcp=[{"route": [to(host)]}])


async def echo(wire: Wire, line: bytes = b"test") -> bytes:
    await wire.send(line + b"\n")
    return await wire.receive(len(b"hello \n" + line))


@pytest.mark.asyncio
async def test_a_listener_that_goes_leaves_its_connections(edge: Edge, wires: Wires) -> None:
    await edge.apply(open_on(SERVICE_PORT))
    staying = await wires.dial(edge.address(SERVICE_PORT))
    assert await echo(staying) == b"hello test\n"

    await edge.apply(open_on(OTHER_PORT))
    assert await refused(edge.address(SERVICE_PORT))
    assert await ask(edge.address(OTHER_PORT)) == "hello test"
    assert await echo(staying) == b"hello test\n"

    await edge.apply(open_on(SERVICE_PORT, OTHER_PORT))
    assert await ask(edge.address(SERVICE_PORT)) == "hello test"
    assert await echo(staying) == b"hello test\n"


@pytest.mark.asyncio
async def test_a_changed_rule_is_for_new_connections(edge: Edge, wires: Wires) -> None:
    await edge.apply(open_on(SERVICE_PORT))
    staying = await wires.dial(edge.address(SERVICE_PORT))
    assert await echo(staying) == b"hello test\n"
    await edge.caught_up()
    opened = len(said(edge.gateway, "listener opened"))
    await edge.apply([gateway(GATEWAY, server(SERVICE_PORT)), route("echo", "echo-server-2")])
    assert await ask(edge.address(SERVICE_PORT)) == "hello-2 test"
    assert await echo(staying) == b"hello test\n"
    await edge.caught_up()
    # the socket was not closed in between: nobody who connects meanwhile is refused
    assert len(said(edge.gateway, "listener opened")) == opened


@pytest.mark.asyncio
async def test_of_two_gateways_on_a_port_the_older_one_has_it(edge: Edge) -> None:
    younger = gateway(
        "a-younger", server(OTHER_PORT), selects=GATEWAY, creationTimestamp="2026-02-01T00:00:00Z"
    )
    older = gateway("b-older", server(OTHER_PORT), selects=GATEWAY, creationTimestamp="2026-01-01T00:00:00Z")
    one, two = route("one", "echo-server", "a-younger"), route("two", "echo-server-2", "b-older")
    await edge.apply([younger, older, one, two])
    assert await ask(edge.address(OTHER_PORT)) == "hello-2 test"
    (conflict,) = [one for one in await says(edge.gateway, "a-younger") if one["code"] == "GW-CONFLICT"]
    assert "Gateway istio-system/b-older" in conflict["message"]
    assert conflict["level"] == "error"

    await edge.apply([younger, older, one, two])
    assert len([one for one in await says(edge.gateway, "a-younger") if one["code"] == "GW-CONFLICT"]) == 1
    await edge.apply([younger, one, two])
    assert await ask(edge.address(OTHER_PORT)) == "hello test"


@pytest.mark.asyncio
async def test_a_port_of_the_gateways_service_is_its_target_port(edge: Edge) -> None:
    ports = [{"name": "echo", "port": 80, "targetPort": 8080}]
    own = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": GATEWAY, "namespace": "istio-system"},
        "spec": {"clusterIP": "192.168.58.40", "selector": {"istio": GATEWAY}, "ports": ports},
    }
    await edge.apply([*open_on(80), own])
    assert await ask(edge.address(8080)) == "hello test"
    assert await refused(edge.address(80))


@pytest.mark.asyncio
async def test_a_server_may_have_an_address_of_its_own(edge: Edge) -> None:
    bound = edge.block.take()
    everywhere = gateway("everywhere", server(SERVICE_PORT), selects=GATEWAY)
    somewhere = gateway("somewhere", server(SERVICE_PORT, bind=bound), selects=GATEWAY)
    one, two = route("one", "echo-server", "everywhere"), route("two", "echo-server-2", "somewhere")
    await edge.apply([everywhere, somewhere, one, two])
    assert await ask(edge.address(SERVICE_PORT)) == "hello test"
    assert await ask((bound, SERVICE_PORT)) == "hello-2 test"


@pytest.mark.asyncio
async def test_what_is_not_for_layer_four_is_not_opened(edge: Edge) -> None:
    await edge.apply(
        [gateway(GATEWAY, server(SERVICE_PORT), server(8081, "HTTP")), route("echo", "echo-server")]
    )
    assert await refused(edge.address(8081))
    assert await ask(edge.address(SERVICE_PORT)) == "hello test"
    assert [one["code"] for one in await says(edge.gateway, r"\*:8081 is not opened")] == ["GW-HTTP"]


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_said_and_tried_again(edge: Edge) -> None:
    await edge.apply([])
    with socket.socket() as somebody:
        somebody.bind(edge.address(7777))
        somebody.listen()
        await edge.apply(open_on(SERVICE_PORT, 7777))
        assert await ask(edge.address(SERVICE_PORT)) == "hello test"
        (problem,) = await says(edge.gateway, "listener cannot be opened yet")
        assert "another process has the port" in problem["error.hint"]
        assert sample(edge.gateway, "ztun_gateway_listeners", state="failed") == 1
    address = f"{edge.gateway_pods[0].ip}:7777"
    await logged(
        edge.gateway, lambda one: (one.get("message"), one.get("address")) == ("listener opened", address)
    )
    assert await ask(edge.address(7777)) == "hello test"
    assert len(said(edge.gateway, "listener cannot be opened yet")) == 1


@pytest.mark.asyncio
async def test_broken_configuration_keeps_what_was_there(edge: Edge, wires: Wires) -> None:
    await edge.apply(open_on(SERVICE_PORT))
    staying = await wires.dial(edge.address(SERVICE_PORT))
    broken = gateway(GATEWAY, server(SERVICE_PORT))
    broken["spec"]["servers"] = "everything"
    await edge.apply([broken, route("echo", "echo-server")])
    assert await ask(edge.address(SERVICE_PORT)) == "hello test"
    assert await echo(staying) == b"hello test\n"
    assert await says(edge.gateway, "Gateway istio-system/ingressgateway-1 spec.servers: should be")


@pytest.mark.asyncio
async def test_a_gateway_without_pod_waits_for_it(own_edge: Edge) -> None:
    """The mesh may learn of the gateway's pod after the gateway has started."""
    own_edge.documents = open_on(SERVICE_PORT)
    late = own_edge.pods.pop()
    own_edge.write()
    process = own_edge.gateway_process(late.name)
    own_edge.spawn(process)
    await logged(process, lambda one: one.get("code") == "GW-UNKNOWN")
    assert not process._answers_ready()
    own_edge.pods.append(late)
    own_edge.write()
    await until(process, "ready", process._answers_ready)
    assert await refused(own_edge.address(80))


@pytest.mark.asyncio
async def test_labels_may_be_given_on_the_command_line(own_edge: Edge) -> None:
    own_edge.documents = open_on(SERVICE_PORT, selects="somebody-else")
    own_edge.start()
    extra = own_edge.gateway_process(GATEWAY, "--label", "istio=somebody-else")
    extra.name = "extra"
    assert await refused(own_edge.address(SERVICE_PORT))
    own_edge.spawn(extra)
    await until(extra, "ready", extra._answers_ready)
    assert await ask(own_edge.address(SERVICE_PORT)) == "hello test"


@pytest.mark.asyncio
async def test_a_drain_lets_connections_end(own_edge: Edge, wires: Wires) -> None:
    own_edge.environment["CONNECTION_TERMINATION_DEADLINE"] = "60s"
    own_edge.documents = open_on(SERVICE_PORT)
    own_edge.start()
    staying = await wires.dial(own_edge.address(SERVICE_PORT))
    assert await echo(staying) == b"hello test\n"
    own_edge.gateway.signal(signal.SIGTERM)
    await logged(own_edge.gateway, lambda one: one.get("message") == "draining")
    assert await refused(own_edge.address(SERVICE_PORT))
    assert await echo(staying) == b"hello test\n"
    staying.end()
    assert await staying.receive_all() == b""
    await ended(own_edge.gateway)
    assert own_edge.gateway.returncode == 0


async def ended(process: Process) -> None:
    await logged(process, lambda one: one.get("message") == "drained")
    process.wait()


@pytest.mark.asyncio
async def test_an_endpoint_that_does_not_answer_is_left_for_another(edge: Edge, wires: Wires) -> None:
    """The pod ``app`` has no application; every connection that is sent there first goes to another one."""
    both = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "both", "namespace": "default"},
        "spec": {
            "clusterIP": "192.168.58.50",
            "selector": {"role": "both"},
            "ports": [{"name": "tcp", "port": SERVICE_PORT, "targetPort": APP_PORT}],
        },
    }
    for pod in (edge.app, edge.prod):
        pod.labels["role"] = "both"  # type: ignore[index]
    await edge.apply([*open_on(SERVICE_PORT)[:1], route("echo", "both"), both])
    seen = {await ask(edge.address(SERVICE_PORT)) for _ in range(12)}
    assert seen == {"hello test"}
    failed = sample(edge.gateway, "istio_tcp_connections_closed_total", destination_workload="app")
    assert failed >= 1
