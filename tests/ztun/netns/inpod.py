"""Nodes in in-pod mode: an agent and a proxy each, and pods that know nothing of either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import NodeProcess
from tests.peers.node import Pod as Document
from tests.ztun.agent.pods import Pod, PodNetwork
from tests.ztun.agent.processes import AgentProcess, pod_document
from tests.ztun.netns.namespaces import run
from tests.ztun.proxy.processes import lines

VIP, VIP6 = "10.96.0.10", "fd96::10"
SERVICE_PORT = 80
LONG_DRAIN = "10m"  # the test ends what it waits for


class InpodNode:
    """One node: its agent, and its proxies, of which there may be several one after the other."""

    def __init__(self, world: InpodWorld, name: str) -> None:
        self.name = name
        self.world = world
        self.directory = world.directory / name
        self.directory.mkdir()
        self.agent = world.stack.enter_context(AgentProcess(self.directory, *world.agent_options))
        self.pods: dict[str, dict[str, Any]] = {}
        self._count = 0
        self.proxy = self.another()

    def another(self) -> NodeProcess:
        """One more proxy, started but not awaited; it becomes :attr:`proxy`."""
        self._count += 1
        directory = self.directory / f"proxy-{self._count}"
        directory.mkdir()
        self.proxy = NodeProcess(
            self.name,
            config=self.world.directory / "mesh",
            authority=self.world.authority.directory,
            directory=directory,
            environment={
                "INPOD_ENABLED": "true",
                "INPOD_UDS": str(self.agent.uds),
                "ENABLE_ORIG_SRC": "true",
                "LOG_FORMAT": "json",
                "CONNECTION_TERMINATION_DEADLINE": LONG_DRAIN,
                **self.world.environment,
            },
        )
        self.proxy.spawn()
        self.world.stack.push(self.proxy)
        return self.proxy

    def enroll(self, name: str, pod: Pod, *, uid: str = "", account: str = "") -> None:
        """Have the agent take a namespace in as the pod ``default/name``, and wait until it is."""
        self.write(name, pod, uid=uid, account=account)
        self.agent.wait_state(f"default/{name}", "enrolled")

    def write(self, name: str, pod: Pod, *, uid: str = "", account: str = "") -> None:
        """The same without waiting."""
        document = pod_document(name, str(pod.path), **({"uid": uid} if uid else {}))
        document["spec"]["serviceAccountName"] = account or name
        self.pods[name] = document
        self.agent.write(*self.pods.values())

    def withdraw(self, name: str) -> None:
        """Have the agent let a pod go, and wait until it has."""
        del self.pods[name]
        self.agent.write(*self.pods.values())
        self.agent.wait_state(f"default/{name}", "")

    def served(self, name: str) -> int:
        """How often the proxy has begun to serve a pod."""
        wanted = ("pod served", f"default/{name}")
        return sum((line.get("message"), line.get("workload")) == wanted for line in lines(self.proxy))


class InpodWorld:
    """Two nodes on one network, and strangers."""

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        agent_options: tuple[str, ...] = ("--no-dns",),
    ) -> None:
        self.directory = directory
        self.environment = dict(environment or {})
        self.agent_options = agent_options
        self.authority = ThrowAwayAuthority(directory)
        self.stack = ExitStack()
        self.network = PodNetwork()
        self.members: dict[str, tuple[Pod, str]] = {}
        self.documents: list[Mapping[str, Any]] = []
        self.nodes: dict[str, InpodNode] = {}
        self._replaced = 0

    def __enter__(self) -> Self:
        self.stack.enter_context(self.network)
        self.configure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def node(self, name: str) -> InpodNode:
        """One more node, with a proxy that is connected to its agent."""
        node = self.nodes[name] = InpodNode(self, name)
        node.proxy.wait_ready()
        return node

    def pod(self, name: str, node: str) -> Pod:
        """One more pod, in the mesh's documents and taken in by the agent of its node."""
        pod = self.network.two_family_pod(name)
        self.members[name] = (pod, node)
        self.configure()
        self.nodes[node].enroll(name, pod)
        return pod

    def replace(self, name: str) -> Pod:
        """Remove a pod and its namespace, and make another with the same name and addresses, not enrolled yet."""
        old, node = self.members[name]
        run("ip", "netns", "del", old.name)
        self._replaced += 1
        pod = self.network.two_family_pod(f"{name}-{self._replaced}")
        for command in ("address flush dev eth0 scope global", f"address add {old.ip}/24 dev eth0"):
            pod.run("ip", *command.split())
        for command in (f"address add {old.ip6}/64 dev eth0 nodad", "-4 route add default dev eth0"):
            pod.run("ip", *command.split())
        pod.run("ip", "-6", "route", "replace", "default", "dev", "eth0")
        pod.namespace.ip, pod.ip, pod.ip6 = old.ip, old.ip, old.ip6
        self.members[name] = (pod, node)
        return pod

    def unplug(self, old: Pod) -> None:
        """End the card of a pod that was replaced: sockets keep its namespace, which would answer for the address."""
        self.network.unplug(old.namespace)
        for other, _ in self.members.values():
            other.run("ip", "neigh", "flush", "dev", "eth0")

    def configure(self, *documents: Mapping[str, Any]) -> None:
        """Write the mesh; the proxies follow."""
        everything: list[Mapping[str, Any]] = [_NAMESPACE, _SERVICE]
        for name, (pod, node) in self.members.items():
            document = Document(name, pod.ip, node).document()
            document["status"]["podIPs"].append({"ip": pod.ip6})
            everything.append(document)
        path = self.directory / "mesh" / "mesh.yaml"
        path.parent.mkdir(exist_ok=True)
        draft = self.directory / "draft.yaml"
        draft.write_text(yaml.safe_dump_all([*everything, *self.documents, *documents], sort_keys=False))
        draft.replace(path)

    def settle(self, *services: str) -> None:
        """Wait until every proxy knows all pods, and services with these hostnames."""
        for node in self.nodes.values():
            node.proxy.wait_until(lambda node=node: self._is_known(node, services), "knowing everybody")

    def _is_known(self, node: InpodNode, services: Iterable[str]) -> bool:
        dump = node.proxy.admin("/config_dump")
        pods = {one["name"] for one in dump["workloads"]}
        return pods >= self.members.keys() and {one["hostname"] for one in dump["services"]} >= set(services)

    def loads(self, node: str) -> int:
        """How often a proxy has loaded the mesh."""
        return sum(line.get("message") == "configuration loaded" for line in lines(self.nodes[node].proxy))


_NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "default", "labels": {"istio.io/dataplane-mode": "ambient"}},
}
_SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "echo", "namespace": "default"},
    "spec": {
        "clusterIP": VIP,
        "clusterIPs": [VIP, VIP6],
        "ipFamilyPolicy": "RequireDualStack",
        "ipFamilies": ["IPv4", "IPv6"],
        "selector": {"app": "server"},
        "ports": [{"name": "tcp", "port": SERVICE_PORT, "targetPort": 9000, "protocol": "TCP"}],
    },
}
