"""The agent with the real node proxy: one process serves pods that know nothing of the mesh."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import NodeProcess, write_mesh
from tests.peers.node import Pod as MeshPod
from tests.ztun.agent.conftest import Agents
from tests.ztun.agent.pods import PATIENCE_SECONDS, Pod, PodNetwork, dial, eventually, listener
from tests.ztun.agent.processes import AgentProcess, pod_document

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

PORT = 9000
NODE = "node"


class Node:
    """An agent, proxies that connect to it, and two pods."""

    def __init__(self, network: PodNetwork, agents: Agents, stack: ExitStack) -> None:
        self.client, self.server = network.two_family_pod("client"), network.two_family_pod("server")
        self.outside = network.two_family_pod("outside")
        self.pods = {"client": self.client, "server": self.server}
        self.before = {name: pod.contents() for name, pod in self.pods.items()}
        self._agents = agents
        self._stack = stack
        self._directory = agents.directory
        self._authority = ThrowAwayAuthority(self._directory)
        self._count = 0
        write_mesh(self._directory / "mesh", [MeshPod(name, pod.ip, NODE) for name, pod in self.pods.items()])
        self.agent = agents.start()
        self.agent.write(*(pod_document(name, pod.name) for name, pod in self.pods.items()))

    def proxy(self) -> NodeProcess:
        """One more node proxy."""
        self._count += 1
        directory = self._directory / f"proxy{self._count}"
        directory.mkdir()
        process = NodeProcess(
            NODE,
            config=self._directory / "mesh",
            authority=self._authority.directory,
            directory=directory,
            environment={
                "INPOD_ENABLED": "true",
                "INPOD_UDS": str(self.agent.uds),
                "ENABLE_ORIG_SRC": "true",
                "LOG_FORMAT": "json",
            },
        )
        return self._stack.enter_context(process)

    def next_agent(self) -> AgentProcess:
        """The agent that comes after the last."""
        self.agent = self._agents.start()
        return self.agent

    def settled(self) -> None:
        """Wait until both pods are in the mesh."""
        for name in self.pods:
            self.agent.wait_state(f"default/{name}", "enrolled")


@pytest.fixture
def node(network: PodNetwork, agents: Agents) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(network, agents, stack)


@contextmanager
def connection(client: Pod, server: Pod) -> Iterator[tuple[socket.socket, socket.socket, str]]:
    """Both ends of a connection, and who the server sees."""
    with listener(server, server.ip, PORT) as listening, dial(client, server.ip, PORT) as near:
        far, peer = listening.accept()
        with far:
            far.settimeout(PATIENCE_SECONDS)
            yield near, far, peer[0]


def talk(near: socket.socket, far: socket.socket) -> None:
    for sender, receiver in ((near, far), (far, near)):
        sender.sendall(b"ping")
        assert receiver.recv(100) == b"ping"


def tunnels(proxy: NodeProcess) -> int:
    """Connections that arrived by mutual TLS and have ended or not."""
    name = "istio_tcp_connections_opened_total{"
    lines = [line for line in proxy.metrics().splitlines() if line.startswith(name)]
    return sum(int(float(line.split()[-1])) for line in lines if "mutual_tls" in line)


def test_pods_speak_through_the_mesh_and_are_let_go_without_a_trace(node: Node) -> None:
    proxy = node.proxy()
    node.settled()
    held = proxy.descriptors(), node.agent.descriptors()
    node.agent.write()
    for name in node.pods:
        node.agent.wait_state(f"default/{name}", "")
    empty = proxy.descriptors(), node.agent.descriptors()
    assert empty[0] < held[0]
    node.agent.write(*(pod_document(name, pod.name) for name, pod in node.pods.items()))
    node.settled()
    for source, target in ((node.client, node.server), (node.server, node.client)):
        before = tunnels(proxy)
        with connection(source, target) as (near, far, seen):
            assert seen == source.ip
            talk(near, far)
        assert tunnels(proxy) > before
    with connection(node.outside, node.server) as (near, far, seen):
        assert seen == node.outside.ip
        talk(near, far)
    with connection(node.client, node.outside) as (near, far, seen):
        talk(near, far)
    node.agent.write()
    for name, pod in node.pods.items():
        node.agent.wait_state(f"default/{name}", "")
        assert pod.contents() == node.before[name]
    # The proxy keeps a namespace a moment longer, to say farewell to the peers of its tunnels.
    eventually(lambda: proxy.descriptors() <= empty[0], "the proxy has nothing left of its pods")
    eventually(lambda: node.agent.descriptors() <= empty[1], "the agent has nothing left of its pods")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_connections_outlive_the_agent(node: Node, number: signal.Signals) -> None:
    node.proxy()
    node.settled()
    with connection(node.client, node.server) as (near, far, _):
        talk(near, far)
        node.agent.signal(number)
        node.agent.wait()
        talk(near, far)
        with connection(node.server, node.client) as (second, third, _):
            talk(second, third)
        node.next_agent()
        node.settled()
        talk(near, far)
        node.agent.write(pod_document("server", node.server.name))
        node.agent.wait_state("default/client", "")
        assert node.client.contents() == node.before["client"]


def test_while_the_proxy_is_down_nothing_leaves_and_then_everything_heals(node: Node) -> None:
    first = node.proxy()
    node.settled()
    with connection(node.client, node.server) as (near, far, _):
        talk(near, far)
    first.signal(signal.SIGKILL)
    first.wait()
    for pod in node.pods:
        node.agent.wait_state(f"default/{pod}", "captured")
    for target in (node.server, node.outside):
        with listener(target, "::", PORT) as listening:
            listening.setblocking(False)
            for ip in (target.ip, target.ip6):
                with pytest.raises(ConnectionRefusedError):
                    dial(node.client, ip, PORT)
            with pytest.raises(BlockingIOError):
                listening.accept()
    node.proxy()
    node.settled()
    with connection(node.client, node.server) as (near, far, seen):
        assert seen == node.client.ip
        talk(near, far)


def test_a_pod_comes_and_goes_beside_a_connection_of_others(node: Node, network: PodNetwork) -> None:
    node.proxy()
    node.settled()
    third = network.lonely_pod("third")
    before = third.contents()
    documents = [pod_document(name, pod.name) for name, pod in node.pods.items()]
    with connection(node.client, node.server) as (near, far, _):
        for _ in range(3):
            node.agent.write(*documents, pod_document("third", third.name))
            node.agent.wait_state("default/third", "enrolled")
            talk(near, far)
            node.agent.write(*documents)
            node.agent.wait_state("default/third", "")
            talk(near, far)
        assert third.contents() == before
