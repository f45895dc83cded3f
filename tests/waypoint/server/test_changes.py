"""Changes under load: no connection is lost, those that are open keep their server, new ones follow."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.peers.node import Pod
from tests.waypoint.server.ground import Ground, example, logged, records, service
from tests.waypoint.server.load import Load

pytestmark = pytest.mark.net

CLIENTS = 64
ENTRY = ("telnet-client", "echo-server")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as ground:
        ground.environment = {"CONNECTION_TERMINATION_DEADLINE": "60s"}
        yield ground


def split(prod: int, gray: int) -> list[Mapping[str, Any]]:
    """Weights over the two subsets of echo-server."""
    shares = [("prod", prod), ("gray", gray)]
    rule: dict[str, Any] = dict(example("corrected/echoserver-vs")[0])
    host = "echo-server.default.svc.cluster.local"
    route = [{"destination": {"host": host, "subset": name}, "weight": weight} for name, weight in shares]
    rule["spec"] = {"hosts": [host], "tcp": [{"route": route}]}
    return [rule, *example("corrected/echoserver-dr")]


def check(load: Load) -> None:
    """What must hold at the end: nothing lost, and every kept connection has had one server."""
    assert load.lost == 0
    assert all(len(words) == 1 for words in load.kept)


@pytest.mark.asyncio
async def test_a_weight_changes_under_load(ground: Ground) -> None:
    ground.rules = split(100, 0)
    ground.start()
    async with Load(ground.entries[ENTRY], CLIENTS) as load:
        assert set(await load.answers()) == {"hello"}
        await ground.apply(split(0, 100))
        assert set(await load.answers()) == {"hello-gray"}
        await ground.apply(split(50, 50))
        await load.turn()
        assert set(await load.answers()) == {"hello", "hello-gray"}
    check(load)
    assert load.kept == [{"hello"}] * (CLIENTS // 2)


@pytest.mark.asyncio
async def test_a_rule_comes_and_goes_under_load(ground: Ground) -> None:
    rule: dict[str, Any] = dict(example("corrected/port")[0])
    second = "echo-server-2.default.svc.cluster.local"
    rule["spec"] = {**rule["spec"], "tcp": [{"route": [{"destination": {"host": second}}]}]}
    ground.services = [
        service("echo-server", {"version": "prod", "app": "echo-server"}),
        service("echo-server-2", {"app": "echo-server-2"}),
    ]
    ground.start()
    async with Load(ground.entries[ENTRY], CLIENTS) as load:
        for _ in range(3):
            await ground.apply([rule])
            assert set(await load.answers()) == {"hello-2"}
            await load.turn()
            await ground.apply([])
            assert set(await load.answers()) == {"hello"}
            await load.turn()
    check(load)


@pytest.mark.asyncio
async def test_an_endpoint_comes_and_goes_under_load(ground: Ground) -> None:
    """The gray pod is an endpoint, and then it is not; its proxy and its application go on."""
    gray = ground.gray
    retired = Pod(gray.name, gray.ip, gray.node, labels={"app": "retired"})
    position = ground.pods.index(gray)
    ground.start()
    async with Load(ground.entries[ENTRY], CLIENTS) as load:
        assert set(await load.answers()) == {"hello", "hello-gray"}
        ground.pods[position] = retired
        await ground.apply()
        assert set(await load.answers()) == {"hello"}
        await load.turn()
        ground.pods[position] = gray
        await ground.apply()
        assert set(await load.answers()) == {"hello", "hello-gray"}
    check(load)


@pytest.mark.asyncio
async def test_a_configuration_that_cannot_be_read_changes_nothing(ground: Ground) -> None:
    ground.rules = split(0, 100)
    ground.start()
    async with Load(ground.entries[ENTRY], CLIENTS) as load:
        broken = ground.config / "broken.yaml"
        broken.write_text("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: [}\n")
        await logged(ground.waypoint, lambda one: "broken.yaml" in str(one.get("message")))
        assert set(await load.answers()) == {"hello-gray"}
        broken.unlink()
    check(load)


@pytest.mark.asyncio
async def test_a_waypoint_that_is_replaced_loses_no_connection(ground: Ground) -> None:
    """The new process takes over the listening address; the old one serves what it has until that ends."""
    ground.services = [service("echo-server", {"version": "prod", "app": "echo-server"})]
    ground.start()
    async with Load(ground.entries[ENTRY], CLIENTS) as load:
        second = ground.waypoint_process(name="waypoint-2")
        ground.spawn(second)
        await asyncio.to_thread(second.wait_ready)
        ground.waypoint.signal(signal.SIGTERM)
        await logged(ground.waypoint, lambda one: one.get("message") == "draining")
        await load.turn()
        assert set(await load.answers()) == {"hello"}
    check(load)
    # the clients are gone, so the drain is over
    assert await asyncio.to_thread(ground.waypoint.wait) == 0
    assert any(one.get("connections_cut") == 0 for one in records(ground.waypoint))
