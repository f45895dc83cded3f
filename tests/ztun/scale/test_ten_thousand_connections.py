"""Ten thousand connections through one pair of proxies, and nothing left of them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers import traffic
from tests.peers.addresses import AddressBlock, free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Forward, NodeProcess, Pod, write_mesh
from tests.peers.process import raise_descriptor_limit
from tests.peers.traffic import Address, ApplicationProcess

pytestmark = pytest.mark.net

CONNECTIONS = 10_000
TASKS = "ztun_event_loop_tasks"
SPARE_DESCRIPTORS = 1000
LEFT_SECONDS = 5.0  # the promise: nothing is left five seconds after the connections have closed


@dataclass(frozen=True, slots=True)
class Pair:
    entry: Address
    source: NodeProcess
    destination: NodeProcess


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    limit = raise_descriptor_limit()
    if limit < CONNECTIONS + SPARE_DESCRIPTORS:
        pytest.skip(f"this process may open only {limit} descriptors")
    authority, block = ThrowAwayAuthority(tmp_path), AddressBlock(offset=3)
    client, server = Pod("client", block.take(), "source"), Pod("server", block.take(), "destination")
    config = write_mesh(tmp_path / "mesh", [client, server])
    address = block.take()
    entry = (address, free_port(address))
    nodes = [
        NodeProcess(
            name,
            config=config,
            authority=authority.directory,
            directory=tmp_path,
            forwards=forwards,
            environment={"POOL_UNUSED_RELEASE_TIMEOUT": "1s"},
        )
        for name, forwards in (
            ("source", [Forward(entry, (server.ip, 9000), client)]),
            ("destination", []),
        )
    ]
    with ApplicationProcess([(server.ip, 9000)], tmp_path / "application.log"), nodes[0], nodes[1]:
        yield Pair(entry, nodes[0], nodes[1])


def test_ten_thousand_connections_at_once_and_nothing_left(pair: Pair) -> None:
    assert traffic.echo(pair.entry, b"warm") == b"warm"
    nodes = (pair.source, pair.destination)
    for node in nodes:
        node.wait_until(lambda node=node: node.sample(TASKS) is not None, "a first count of tasks")  # type: ignore[misc]
    before = [(node.descriptors(), node.sample(TASKS) or 0) for node in nodes]
    with traffic.OpenEchoes() as echoes:
        echoes.open(pair.entry, CONNECTIONS)
        echoes.check()
        assert all(node.descriptors() >= CONNECTIONS for node in nodes)
    for node, (descriptors, tasks) in zip(nodes, before, strict=True):
        node.wait_until(
            lambda node=node, descriptors=descriptors, tasks=tasks: (  # type: ignore[misc]
                node.descriptors() <= descriptors and (node.sample(TASKS) or 0) <= tasks
            ),
            f"back to {descriptors} descriptors and {tasks:g} tasks",
            LEFT_SECONDS,
        )
    assert traffic.echo(pair.entry, b"after") == b"after"
