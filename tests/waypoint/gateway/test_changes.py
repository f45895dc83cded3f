"""The configuration changes under load: no connection is lost, and new ones follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waypoint.gateway.edge import SERVICE_PORT, Edge, gateway, rules, server, to
from tests.waypoint.server.ground import Documents, service
from tests.waypoint.server.load import Load

pytestmark = pytest.mark.net

GATEWAY = "ingressgateway-1"
CLIENTS = 64


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with Edge(tmp_path) as edge:
        edge.documents = split(100, 0)
        edge.start()
        yield edge


def split(first: int, second: int, *more_ports: int) -> Documents:
    shares = [to("echo-server", weight=first), to("echo-server-2", weight=second)]
    return [
        gateway(GATEWAY, *(server(port) for port in (SERVICE_PORT, *more_ports))),
        rules("split", [GATEWAY], tcp=[{"route": shares}]),
    ]


@pytest.mark.asyncio
async def test_no_change_loses_a_connection(edge: Edge) -> None:
    async with Load(edge.address(SERVICE_PORT), CLIENTS) as load:
        assert set(await load.answers()) == {"hello"}

        await edge.apply(split(0, 100))
        assert set(await load.answers()) == {"hello-2"}
        await load.turn()

        await edge.apply(split(50, 50, 7001, 7002))
        assert set(await load.answers()) == {"hello", "hello-2"}
        await load.turn()

        edge.services = [service("echo-server", {"app": "echo-server"}, labels={}), *edge.services[1:]]
        await edge.apply(split(100, 0))
        assert set(await load.answers()) == {"hello", "hello-gray"}
        await load.turn()
    assert load.lost == 0
    # a connection stays with the server that it began with
    assert all(words == {"hello"} for words in load.kept)
