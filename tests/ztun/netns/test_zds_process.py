"""A node proxy as a process and what an agent says to it: pods it cannot take yet, and what makes no sense."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import NodeProcess, write_mesh
from tests.ztun.agent.pods import PodNetwork
from tests.ztun.netns.namespaces import missing
from tests.ztun.netns.plain_agent import Agent
from tests.ztun.proxy.processes import lines, metric, ready_status
from ztun.zds.messages import AddWorkload, DelWorkload, SnapshotSent

pytestmark = pytest.mark.netns

REASON = missing()
POD, OTHER = (AddWorkload(f"uid-{name}", name, "default", "default") for name in ("pod", "other"))


@pytest.fixture
def network() -> Iterator[PodNetwork]:
    if REASON:
        pytest.skip(REASON)
    with PodNetwork() as network:
        yield network


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "zds")
    yield agent
    agent.close()


def make_proxy(directory: Path, agent: Agent, **environment: str) -> NodeProcess:
    """A proxy that is not started."""
    directory.mkdir(exist_ok=True)
    return NodeProcess(
        "node",
        config=write_mesh(directory / "mesh", []),
        authority=ThrowAwayAuthority(directory).directory,
        directory=directory,
        environment={
            "INPOD_ENABLED": "true",
            "INPOD_UDS": str(agent.path),
            "LOG_FORMAT": "json",
            **environment,
        },
    )


@contextlib.contextmanager
def connected(proxy: NodeProcess, agent: Agent) -> Iterator[NodeProcess]:
    """Start a proxy; the agent knows it then, and has not told it anything."""
    with contextlib.ExitStack() as stack:
        proxy.spawn()
        stack.push(proxy)
        agent.accept()
        yield proxy


@pytest.fixture
def proxy(network: PodNetwork, agent: Agent, tmp_path: Path) -> Iterator[NodeProcess]:
    """Connected to the agent."""
    with connected(make_proxy(tmp_path, agent), agent) as proxy:
        yield proxy


def managed(proxy: NodeProcess) -> list[float]:
    """ztunnel's counts of pods: active, pending, started, stopped."""
    names = ("active_proxy_count", "pending_proxy_count", "proxies_started_total", "proxies_stopped_total")
    return [metric(proxy, f"workload_manager_{name}") for name in names]


def test_a_pod_whose_port_is_taken_is_served_once_it_is_free(
    network: PodNetwork, agent: Agent, proxy: NodeProcess
) -> None:
    pod = network.lonely_pod("taken")
    with pod.inside(lambda: socket.create_server(("0.0.0.0", 15006))):
        answer = agent.ask(POD, pod.path)
        assert answer.startswith("failure to start proxy : cannot listen on")
        assert agent.ask(SnapshotSent()) == ""
        proxy.wait_until(lambda: managed(proxy) == [0, 1, 0, 0], "counting it as pending")
        assert ready_status(proxy) == 500
        states = proxy.admin("/config_dump")["workloadState"]
        assert {uid: one["state"] for uid, one in states.items()} == {"uid-pod": "Pending"}
    proxy.wait_ready()
    assert managed(proxy) == [1, 0, 1, 0]
    assert agent.ask(DelWorkload("uid-pod")) == ""
    proxy.wait_until(lambda: managed(proxy) == [0, 0, 1, 1], "counting it as stopped")


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_two_proxies_share_the_ports_of_a_pod_only_with_port_reuse(
    network: PodNetwork, agent: Agent, tmp_path: Path, reuse: str
) -> None:
    """Without it the second one waits for the end of the first."""
    pod, other_agent = network.lonely_pod("both"), Agent(tmp_path / "other-zds")
    first = make_proxy(tmp_path / "first", agent, INPOD_PORT_REUSE=reuse)
    second = make_proxy(tmp_path / "second", other_agent, INPOD_PORT_REUSE=reuse)
    with contextlib.closing(other_agent), connected(first, agent), connected(second, other_agent):
        assert agent.ask(POD, pod.path) == ""
        assert agent.ask(SnapshotSent()) == ""
        answer = other_agent.ask(POD, pod.path)
        assert other_agent.ask(SnapshotSent()) == ""
        assert ("cannot listen on" in answer) == (reuse == "false")
        first.stop()
        second.wait_ready()


def test_one_namespace_is_one_pod(network: PodNetwork, agent: Agent, proxy: NodeProcess) -> None:
    """Two would share its connections, and each would have some of them under the wrong identity."""
    pod = network.lonely_pod("shared")
    assert agent.ask(POD, pod.path) == ""
    assert "its network namespace is that of default/pod" in agent.ask(OTHER, pod.path)
    assert agent.ask(SnapshotSent()) == ""
    assert agent.ask(DelWorkload("uid-pod")) == ""
    proxy.wait_ready()
    assert managed(proxy) == [1, 0, 2, 1]


def test_an_agent_that_makes_no_sense_ends_the_proxy_with_failure(
    network: PodNetwork, agent: Agent, proxy: NodeProcess
) -> None:
    """The pods are drained, not dropped; whoever started the proxy starts it again."""
    pod = network.lonely_pod("drained")
    assert agent.ask(POD, pod.path) == ""
    assert agent.ask(SnapshotSent()) == ""
    assert agent.ask(SnapshotSent()) == "pod snapshot received already"
    assert proxy.wait() == 1
    messages = [line["message"] for line in lines(proxy)]
    assert "background task failed, shutting down" in messages
    assert "drained" in messages
