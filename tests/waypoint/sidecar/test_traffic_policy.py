"""A DestinationRule's traffic policy on live traffic, in the sidecar of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.peers.node import Pod
from tests.waypoint.server.ground import APP_PORT, ask, logged, sample, until
from tests.waypoint.server.test_page import split_services
from tests.waypoint.sidecar.ground import SidecarGround, destination_rule
from tests.ztun.proxy.applications import Wire, Wires
from ztun.mesh.model import HBONE_PORT

pytestmark = pytest.mark.net

CLIENT = "telnet-client"
ECHO = "echo-server.default.svc.cluster.local"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarGround]:
    with SidecarGround(tmp_path_factory.mktemp("policies")) as ground:
        ground.services = split_services()
        ground.start()
        yield ground


async def in_turn(ground: SidecarGround, count: int, service: str = "echo-server") -> list[str | None]:
    """The answers to connections one after the other."""
    return [await ask(ground.entries[CLIENT, service]) for _ in range(count)]


async def apply(ground: SidecarGround, *pods: Pod, **policy: Any) -> None:
    """A policy for echo-server, and more pods behind it."""
    usual = [pod for pod in ground.pods if not pod.name.startswith("extra")]
    ground.pods = [*usual, *pods]
    await ground.apply([destination_rule(ECHO, **policy)])


def failures(ground: SidecarGround, code: str) -> float:
    return sample(ground.sidecars[CLIENT], "ztun_connection_failures_total", code=code)


async def talk(wire: Wire, line: bytes) -> bytes:
    await wire.send(line + b"\n")
    return await wire.reader.readline()


@pytest.mark.asyncio
async def test_round_robin_takes_turns(ground: SidecarGround) -> None:
    await apply(ground, loadBalancer={"simple": "ROUND_ROBIN"})
    seen = await in_turn(ground, 10)
    assert seen[::2] == [seen[0]] * 5
    assert seen[1::2] == [seen[1]] * 5
    assert {seen[0], seen[1]} == {"hello test", "hello-gray test"}


@pytest.mark.asyncio
@pytest.mark.parametrize("table", [{}, {"ringHash": {"minimumRingSize": 64}}, {"maglev": {"tableSize": 101}}])
async def test_a_client_sticks_to_its_endpoint(ground: SidecarGround, table: Mapping[str, Any]) -> None:
    await apply(ground, loadBalancer={"consistentHash": {"useSourceIp": True, **table}})
    assert len(set(await in_turn(ground, 20))) == 1


@pytest.mark.asyncio
async def test_connections_above_the_limit_are_closed_at_once(ground: SidecarGround) -> None:
    await apply(ground, connectionPool={"tcp": {"maxConnections": 2}})
    sidecar, before = ground.sidecars[CLIENT], failures(ground, "overload")
    async with Wires() as wires:
        held = [await wires.dial(ground.entries[CLIENT, "echo-server"]) for _ in range(2)]
        for wire in held:
            assert (await talk(wire, b"held")).endswith(b"held\n")
        assert await ask(ground.entries[CLIENT, "echo-server"]) is None
        assert failures(ground, "overload") == before + 1
        assert sample(sidecar, "ztun_destination_overflows_total") == before + 1
        # another destination has its own limit
        assert await ask(ground.entries[CLIENT, "echo-server-2"]) == "hello-2 test"
        # what is open counts over a reload
        await apply(ground, connectionPool={"tcp": {"maxConnections": 1}})
        assert await ask(ground.entries[CLIENT, "echo-server"]) is None
        for wire in held:
            wire.end()
            assert await wire.ending() == "eof"
        await until(sidecar, "taking connections again", lambda: _open(ground) == 0)
        assert await ask(ground.entries[CLIENT, "echo-server"]) is not None


def _open(ground: SidecarGround) -> int:
    connections = ground.sidecars[CLIENT].admin("/config_dump")["workloadState"]
    return sum(len(one["connections"]["outbound"]) for one in connections.values())


@pytest.mark.asyncio
async def test_an_endpoint_that_cannot_be_reached_is_ejected(ground: SidecarGround) -> None:
    gone = ground.pod("extra-gone", "far", app="echo-server", version="prod")
    # a sidecar that does not run: nobody listens on its HBONE port
    gone = Pod(gone.name, gone.ip, "far", labels={**gone.labels, "sidecar.istio.io/inject": "true"})
    await apply(
        ground,
        gone,
        loadBalancer={"simple": "ROUND_ROBIN"},
        outlierDetection={
            "consecutive5xxErrors": 1,
            "baseEjectionTime": "300s",
            "interval": "300s",
            "maxEjectionPercent": 50,
        },
    )
    sidecar, refused = ground.sidecars[CLIENT], failures(ground, "connect_refused")
    ejected = sample(sidecar, "ztun_endpoints_ejected_total")
    # the first time somebody is sent there, another endpoint takes the connection
    assert None not in await in_turn(ground, 12)
    assert failures(ground, "connect_refused") == refused + 1
    assert sample(sidecar, "ztun_endpoints_ejected_total") == ejected + 1
    await logged(sidecar, lambda one: "endpoint ejected" in one.get("message", "") and gone.ip in str(one))


@pytest.mark.asyncio
async def test_a_destination_has_so_long_to_take_a_connection(ground: SidecarGround) -> None:
    silent = ground.pod("extra-silent", "far", app="echo-server-2", version="prod")
    silent = Pod(silent.name, silent.ip, "far", labels={**silent.labels, "sidecar.istio.io/inject": "true"})
    async with Wires() as wires:
        await wires.application(silent.ip, HBONE_PORT)  # accepts, and never answers
        usual = ground.pods
        ground.pods = [pod for pod in usual if pod.name != "second"] + [silent]
        rule = destination_rule("echo-server-2", connectionPool={"tcp": {"connectTimeout": "100ms"}})
        await ground.apply([rule])
        assert await ask(ground.entries[CLIENT, "echo-server-2"]) is None
        record = await logged(ground.sidecars[CLIENT], lambda one: one.get("error.code") == "connect_timeout")
        assert "connectTimeout" in record["error.hint"]
        ground.pods = usual


@pytest.mark.asyncio
async def test_without_encryption_wanted_pods_of_the_mesh_are_reached_plainly(ground: SidecarGround) -> None:
    await apply(ground, tls={"mode": "DISABLE"}, loadBalancer={"simple": "ROUND_ROBIN"})
    assert set(await in_turn(ground, 4)) == {"hello test", "hello-gray test"}
    for server in ("prod", "gray"):
        record = await logged(
            ground.sidecars[CLIENT],
            lambda one, server=server: (  # type: ignore[misc]
                one.get("message") == "connection complete"
                and one.get("dst.workload") == server
                and one["dst.addr"].endswith(f":{APP_PORT}")
            ),
        )
        assert "dst.hbone_addr" not in record
        assert "dst.identity" not in record


@pytest.mark.asyncio
async def test_encryption_that_cannot_be_had_closes_the_connection(ground: SidecarGround) -> None:
    await apply(ground, tls={"mode": "SIMPLE"})
    assert await ask(ground.entries[CLIENT, "echo-server"]) is None
    await logged(ground.sidecars[CLIENT], lambda one: one.get("error.code") == "tls_origination")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("tcp", "code"),
    [({"idleTimeout": "1s"}, "idle_timeout"), ({"maxConnectionDuration": "1s"}, "max_duration")],
)
async def test_a_connection_ends_when_its_time_is_over(
    ground: SidecarGround, tcp: Mapping[str, str], code: str
) -> None:
    await apply(ground, connectionPool={"tcp": dict(tcp)})
    async with Wires() as wires:
        wire = await wires.dial(ground.entries[CLIENT, "echo-server"])
        assert await talk(wire, b"x") in (b"hello x\n", b"hello-gray x\n")
        assert await wire.ending() == "eof"
    record = await logged(ground.sidecars[CLIENT], lambda one: one.get("error.code") == code)
    assert "DestinationRule" in record["error.hint"]


@pytest.mark.asyncio
async def test_many_at_once_never_exceed_the_limit(ground: SidecarGround) -> None:
    await apply(ground, connectionPool={"tcp": {"maxConnections": 5}})
    async with Wires() as wires:
        answers = await asyncio.gather(*(answer(wires, ground) for _ in range(40)))
        assert sum(found is not None for found in answers) == 5


async def answer(wires: Wires, ground: SidecarGround) -> bytes | None:
    """What a connection that stays open is answered with."""
    try:
        wire = await wires.dial(ground.entries[CLIENT, "echo-server"])
        return await talk(wire, b"x") or None
    except ConnectionError:
        return None
