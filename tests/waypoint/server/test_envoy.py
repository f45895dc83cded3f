"""An Envoy in front of the waypoint as its client, an Envoy behind it as the endpoint, and both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.peers import traffic
from tests.peers.application import GREETING
from tests.peers.envoy import EnvoyProcess, envoy_binary
from tests.peers.envoy_parts import Terminator, TunnelEntry
from tests.peers.node import Pod
from tests.peers.pattern import Tally
from tests.peers.traffic import Address, ApplicationProcess
from tests.waypoint.server.ground import VIPS, Documents, Ground, sample, service

pytestmark = pytest.mark.peer

MEBIBYTE = 1024 * 1024
COMMAND, GREET, FAREWELL = 9000, 9001, 9002
PORTS = {"command": COMMAND, "greet": GREET, "farewell": FAREWELL}
BEHIND_ZTUN, BEHIND_ENVOY = "echo-server", "echo-server-2"


@dataclass(frozen=True, slots=True)
class Way:
    """Entries, by what the application does, that lead through the waypoint."""

    ground: Ground
    entries: dict[str, Address]


@dataclass(frozen=True, slots=True)
class Built:
    ground: Ground
    clients: EnvoyProcess
    entries: dict[tuple[str, str, str], Address]
    """By client, service and port."""


def services() -> Documents:
    found = [
        service(BEHIND_ZTUN, {"version": "prod", "app": "echo-server"}),
        service(BEHIND_ENVOY, {"app": "echo-server-2"}),
    ]
    for one in found:
        one["spec"]["ports"] = [
            {"name": f"tcp-{name}", "port": port, "targetPort": port} for name, port in PORTS.items()
        ]
    return found


def application(ground: Ground, pod: Pod) -> ApplicationProcess:
    log = ground.directory / f"application-{pod.name}.log"
    return ApplicationProcess(
        [(pod.ip, COMMAND)], log, greet=[(pod.ip, GREET)], farewell=[(pod.ip, FAREWELL)]
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    try:
        envoy_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with Ground(tmp_path_factory.mktemp("envoy")) as ground, ExitStack() as stack:
        client, prod, waypoint = ground.clients[0], ground.prod, ground.waypoint_pod
        second = replace(ground.second, node="envoy")
        ground.pods[ground.pods.index(ground.second)] = second
        ground.services, ground.servers = services(), {}
        entries: dict[tuple[str, str, str], Address] = {}
        tunnels = []
        for host in (BEHIND_ZTUN, BEHIND_ENVOY):
            for name, port in PORTS.items():
                ground.forward(client, f"{host} {name}", (VIPS[host], port))
                entries["ztun", host, name] = ground.entries[client.name, f"{host} {name}"]
                tunnels.append(
                    TunnelEntry(
                        f"{host} {name}",
                        (ground.block.take(), 0),
                        f"{VIPS[host]}:{port}",
                        (waypoint.ip, 15008),
                        ground.authority.issue(client.identity),
                        waypoint.identity,
                    )
                )
        terminator = Terminator(
            "inbound",
            (second.ip, 15008),
            ground.authority.issue(second.identity),
            {f"{second.ip}:{port}": (second.ip, port) for port in PORTS.values()},
            expected=[waypoint.identity],
        )
        for pod in (prod, second):
            stack.enter_context(application(ground, pod))
        stack.enter_context(EnvoyProcess("endpoint", [terminator], ground.directory))
        ground.start()
        envoy = stack.enter_context(EnvoyProcess("clients", tunnels, ground.directory, half_close=True))
        for host in (BEHIND_ZTUN, BEHIND_ENVOY):
            for name in PORTS:
                entries["envoy", host, name] = envoy.listener(f"{host} {name}")
        yield Built(ground, envoy, entries)


@pytest.fixture(
    params=[("envoy", BEHIND_ZTUN), ("ztun", BEHIND_ENVOY), ("envoy", BEHIND_ENVOY)],
    ids=["envoy-ztun", "ztun-envoy", "envoy-envoy"],
)
def way(request: pytest.FixtureRequest, built: Built) -> Way:
    """From a client to the application, with an Envoy on the named sides of the waypoint."""
    client, host = request.param
    return Way(built.ground, {name: built.entries[client, host, name] for name in PORTS})


def test_bulk_up_is_byte_exact(way: Way) -> None:
    seen = traffic.upload(way.entries["command"], 1, 32 * MEBIBYTE)
    assert seen == str(Tally.of_pattern(1, 32 * MEBIBYTE))


def test_bulk_down_is_byte_exact(way: Way) -> None:
    seen = traffic.download(way.entries["command"], 2, 32 * MEBIBYTE)
    assert seen == str(Tally.of_pattern(2, 32 * MEBIBYTE))


def test_client_first_half_close_keeps_the_answer_flowing(way: Way) -> None:
    payload = os.urandom(3 * MEBIBYTE)
    assert traffic.echo(way.entries["command"], payload) == payload


def test_a_server_that_speaks_first_is_heard(way: Way) -> None:
    with traffic.dial(way.entries["greet"]) as connection:
        assert traffic.read_exactly(connection, 11) == b"220 ready\r\n"


def test_a_server_that_greets_and_leaves_is_heard(way: Way) -> None:
    for _ in range(50):
        with traffic.dial(way.entries["farewell"]) as connection:
            assert traffic.read_all(connection) == GREETING


def test_many_connections_at_once(way: Way) -> None:
    with traffic.OpenEchoes() as echoes:
        echoes.open(way.entries["command"], 150)
        echoes.check()


def test_the_waypoint_knows_both_ends(way: Way) -> None:
    with traffic.dial(way.entries["greet"]) as connection:
        traffic.read_exactly(connection, 11)
    assert sample(
        way.ground.waypoint,
        "istio_tcp_connections_opened_total",
        reporter="waypoint",
        source_principal=str(way.ground.clients[0].identity),
        connection_security_policy="mutual_tls",
    )


def test_an_envoy_is_refused_what_is_not_served(built: Built) -> None:
    """Its client sees the connection closed, as with any refused CONNECT."""
    ground = built.ground
    entry = TunnelEntry(
        "foreign",
        (ground.block.take(), 0),
        "192.0.2.1:80",
        (ground.waypoint_pod.ip, 15008),
        ground.authority.issue(ground.clients[0].identity),
        ground.waypoint_pod.identity,
    )
    with EnvoyProcess("foreign", [entry], ground.directory) as envoy:
        with traffic.dial(envoy.listener("foreign")) as connection:
            assert traffic.read_all(connection) == b""
        assert sample(ground.waypoint, "ztun_connection_failures_total", code="not_served") >= 1
