"""One process, many pods: what each costs, and that nothing is left when they are gone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import NodeProcess, write_mesh
from tests.ztun.agent.pods import Pod, PodNetwork
from tests.ztun.netns.connections import dial, listen
from tests.ztun.netns.inpod import InpodNode, InpodWorld
from tests.ztun.netns.namespaces import missing
from tests.ztun.netns.plain_agent import Agent
from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.processes import lines, metric, wait_for
from ztun.zds.messages import AddWorkload, DelWorkload, SnapshotSent

pytestmark = pytest.mark.netns

REASON = missing()
PODS = 200
PORTS = (15001, 15006, 15008)
DESCRIPTORS_EACH = 9  # the namespace, the way back, three listeners; DNS over UDP and TCP, in both families


@pytest.fixture
def network() -> Iterator[PodNetwork]:
    if REASON:
        pytest.skip(REASON)
    with PodNetwork() as network:
        yield network


def test_one_process_serves_two_hundred_pods(network: PodNetwork, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "zds")
    proxy = NodeProcess(
        "node",
        config=write_mesh(tmp_path / "mesh", []),
        authority=ThrowAwayAuthority(tmp_path).directory,
        directory=tmp_path,
        environment={"INPOD_ENABLED": "true", "INPOD_UDS": str(tmp_path / "zds"), "LOG_FORMAT": "json"},
    )
    pods = [network.lonely_pod(f"many{number}") for number in range(PODS)]
    with contextlib.ExitStack() as stack:
        stack.callback(agent.close)
        proxy.spawn()
        stack.push(proxy)
        agent.accept()
        agent.ask(SnapshotSent())
        proxy.wait_ready()
        assert agent.ask(AddWorkload("first", "first", "default", "default"), pods[0].path) == ""
        agent.ask(DelWorkload("first"))  # whatever is opened once and kept is open now
        before = proxy.descriptors()
        for number, pod in enumerate(pods):
            request = AddWorkload(f"uid-{number}", f"pod-{number}", "default", "default")
            assert agent.ask(request, pod.path) == ""
        assert proxy.descriptors() - before <= PODS * DESCRIPTORS_EACH
        for pod in pods:
            assert listening(pod) == set(PORTS)
        for number in range(PODS):
            assert agent.ask(DelWorkload(f"uid-{number}")) == ""
        proxy.wait_until(lambda: proxy.descriptors() <= before, "rid of all of it")
        for pod in pods:
            assert listening(pod) == set()


@pytest.mark.asyncio
async def test_one_pod_cannot_take_what_the_others_need(tmp_path: Path) -> None:
    """Neither with what it opens nor with what others open to it; each of its connections that ends makes room."""
    if REASON:
        pytest.skip(REASON)
    environment = {"ZTUN_MAX_CONNECTIONS_PER_POD": "3"}
    with InpodWorld(tmp_path, environment=environment) as world:
        near, far = world.node("near"), world.node("far")
        greedy, modest, server = (
            world.pod("greedy", "near"),
            world.pod("modest", "near"),
            world.pod("server", "far"),
        )
        other = world.pod("other", "far")
        async with Wires() as wires:
            await listen(wires, server.namespace, echo=True)
            await listen(wires, other.namespace, echo=True)

            async def answered(source: Pod, target: Pod) -> Wire:
                wire = await dial(wires, source.namespace, target.ip)
                await wire.send(b"hello")
                assert await wire.receive(5) == b"hello"
                return wire

            async def refused(source: Pod, target: Pod) -> bool:
                try:
                    wire = await dial(wires, source.namespace, target.ip)
                except ConnectionResetError:
                    return True
                return await wire.ending() == "reset"

            async def says_so(node: InpodNode) -> None:
                await wait_for(
                    node.proxy,
                    "saying so",
                    lambda: any(one.get("error.code") == "too_many_connections" for one in lines(node.proxy)),
                )

            mine = [await answered(greedy, server) for _ in range(3)]
            assert await refused(greedy, other)
            await says_so(near)
            assert await refused(modest, server)
            await says_so(far)
            await answered(modest, other)
            await mine.pop().close()
            await wait_for(
                near.proxy,
                "done with one",
                lambda: metric(near.proxy, "istio_tcp_connections_closed_total") >= 1,
            )
            await answered(greedy, other)


def listening(pod: Pod) -> set[int]:
    """Which of the proxy's ports take connections inside a pod."""

    def taken(port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    found: set[int] = pod.inside(lambda: {port for port in PORTS if taken(port)})
    return found
