"""The mesh of the examples as real processes: clients on one node, echo servers on another, a waypoint between.

Addresses are loopback ones of the test's own; the services have the virtual addresses that the examples route by.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.peers.addresses import AddressBlock, free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Forward, NodeProcess, Pod, ProxyProcess, write_mesh
from tests.peers.process import Process
from tests.peers.traffic import ROOT, Address

EXAMPLES = ROOT / "compose" / "examples"
APP_PORT = 9000
SERVICE_PORT = 19000
VIPS = {
    "echo-server": "192.168.58.10",
    "echo-server-2": "192.168.77.20",
    "echo-server-prod": "192.168.58.11",
    "echo-server-gray": "192.168.58.12",
}
WAYPOINT_LABELS = {"gateway.networking.k8s.io/gateway-name": "waypoint"}
Documents = Sequence[Mapping[str, Any]]


def example(*names: str) -> list[Mapping[str, Any]]:
    """The documents of files below ``compose/examples``, e.g. ``as-printed/port``."""
    return [
        document for name in names for document in yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text())
    ]


def service(
    name: str, selector: Mapping[str, str], *, labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A service with its virtual address, behind the waypoint unless ``labels`` say otherwise."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"istio.io/use-waypoint": "waypoint"} if labels is None else dict(labels),
        },
        "spec": {
            "clusterIP": VIPS[name],
            "selector": dict(selector),
            "ports": [{"name": "tcp", "port": SERVICE_PORT, "targetPort": APP_PORT}],
        },
    }


def gateway(purpose: str = "service", **annotations: str) -> dict[str, Any]:
    """The waypoint's Gateway."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": "waypoint",
            "namespace": "default",
            "labels": {"istio.io/waypoint-for": purpose},
            "annotations": annotations,
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [
                {
                    "name": "mesh",
                    "port": 15008,
                    "protocol": "HBONE",
                    "allowedRoutes": {"namespaces": {"from": "All"}},
                }
            ],
        },
    }


class EchoProcess(Process):
    """``ztun echo`` at the address of a pod."""

    def __init__(self, pod: Pod, say: str, directory: Path) -> None:
        argv = [sys.executable, "-m", "ztun", "echo", "--host", pod.ip, "--port", str(APP_PORT), "--say", say]
        super().__init__(
            f"echo-{say}",
            argv,
            directory / f"echo-{pod.name}.log",
            ready=lambda: _accepts((pod.ip, APP_PORT)),
            environment={"PYTHONPATH": str(ROOT)},
        )


class Ground:
    """The mesh. Set what differs from the usual before ``start``; call ``apply`` to change it while it runs.

    ``entries`` lead from a client (by its pod's name) to a service, at the clients' node proxy.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.block = AddressBlock(offset=100)
        self.authority = ThrowAwayAuthority(directory)
        self.clients = [
            self.pod("telnet-client", "near"),
            self.pod("telnet-client-2", "near"),
            self.pod("telnet-client-foo", "near", namespace="foo"),
        ]
        self.prod = self.pod("prod", "far", app="echo-server", version="prod")
        self.gray = self.pod("gray", "far", app="echo-server", version="gray")
        self.second = self.pod("second", "far", app="echo-server-2", version="prod")
        self.waypoint_pod = self.pod("waypoint", "middle", **WAYPOINT_LABELS)
        self.servers = {"hello": self.prod, "hello-2": self.second, "hello-gray": self.gray}
        self.services: Documents = [
            service("echo-server", {"app": "echo-server"}),
            service("echo-server-2", {"app": "echo-server-2"}),
        ]
        self.gateway: Mapping[str, Any] = gateway()
        self.rules: Documents = []
        self.pods = [*self.clients, self.prod, self.gray, self.second, self.waypoint_pod]
        self.entries: dict[tuple[str, str], Address] = {}
        self.environment: dict[str, str] = {}
        self.more_nodes: list[str] = []
        self.waypoint_options: list[str] = []
        self.proxies: list[ProxyProcess] = []
        self._forwards: list[Forward] = []
        self._stack = ExitStack()
        for client in self.clients:
            for name, vip in VIPS.items():
                self.forward(client, name, (vip, SERVICE_PORT))

    def pod(self, name: str, node: str, *, namespace: str = "default", **labels: str) -> Pod:
        """A pod with an address of its own."""
        return Pod(name, self.block.take(), node, namespace, labels)

    def forward(self, client: Pod, name: str, target: Address) -> None:
        """A way in: ``entries[client, name]`` leads to ``target``. Before ``start`` only."""
        ip = self.block.take()
        self.entries[client.name, name] = listen = (ip, free_port(ip))
        self._forwards.append(Forward(listen, target, client))

    @property
    def config(self) -> Path:
        """The directory for ``--config``."""
        return self.directory / "mesh"

    def write(self) -> None:
        """Write the configuration in one step."""
        draft = self.directory / "draft"
        documents = [self.gateway, *self.services, *self.rules]
        text = (write_mesh(draft, self.pods, documents) / "mesh.yaml").read_text()
        self.config.mkdir(exist_ok=True)
        (draft / "next").write_text(text)
        (draft / "next").replace(self.config / "mesh.yaml")

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.write()
        echoes: list[Process] = [EchoProcess(pod, say, self.directory) for say, pod in self.servers.items()]
        self.near = self.node("near", self._forwards)
        self.far = self.node("far")
        self.waypoint = self.waypoint_process(*self.waypoint_options)
        self.proxies = [self.near, self.far, self.waypoint, *map(self.node, self.more_nodes)]
        for process in (*echoes, *self.proxies):
            self.spawn(process)
        for process in (*echoes, *self.proxies):
            process.wait_ready()

    def spawn(self, process: Process) -> None:
        """Start a process that ends with the mesh."""
        process.spawn()
        self._stack.push(process)

    def node(self, name: str, forwards: Sequence[Forward] = ()) -> NodeProcess:
        """A node proxy, not started."""
        return NodeProcess(
            name,
            config=self.config,
            authority=self.authority.directory,
            directory=self.directory,
            forwards=forwards,
            environment={"LOG_FORMAT": "json", **self.environment},
        )

    def waypoint_process(self, *more: str, name: str = "waypoint") -> ProxyProcess:
        """The waypoint, not started."""
        return ProxyProcess(
            name,
            ["waypoint", "run", "--name", "waypoint", "--namespace", "default", *more],
            config=self.config,
            authority=self.authority.directory,
            directory=self.directory,
            environment={"LOG_FORMAT": "json", **self.environment},
        )

    async def apply(self, rules: Documents | None = None) -> None:
        """Change the configuration; returns when every proxy decides by it."""
        if rules is not None:
            self.rules = rules
        before = {proxy.name: generation(proxy) for proxy in self.proxies}
        self.write()
        for proxy in self.proxies:
            await follows(proxy, before[proxy.name])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def generation(proxy: ProxyProcess) -> int:
    """Which state of the configuration a proxy has loaded."""
    return int(proxy.admin("/config_dump")["generation"])


async def follows(proxy: ProxyProcess, before: int) -> None:
    """Wait until a proxy decides by a newer configuration."""

    def decides() -> bool:
        loaded = generation(proxy)
        return loaded > before and sample(proxy, "ztun_routing_generation", default=loaded) >= loaded

    await until(proxy, "following its configuration", decides)


async def until(proxy: Process, what: str, condition: Callable[[], bool]) -> None:
    """Wait for a proxy to show something, without holding up the loop."""
    await asyncio.to_thread(proxy.wait_until, condition, what)


def sample(proxy: ProxyProcess, name: str, *, default: float = 0.0, **labels: str) -> float:
    """A metric, summed over the labels that are not given; ``default`` when there is no such sample."""
    found = [
        one.value
        for family in text_string_to_metric_families(proxy.metrics())
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    ]
    return sum(found) if found else default


def records(proxy: Process) -> list[dict[str, Any]]:
    """The log of a proxy."""
    found = []
    for line in proxy.log.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # being written, or not of the proxy
            found.append(json.loads(line))
    return found


async def logged(proxy: Process, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first record that is wanted; waits for it."""
    await until(proxy, "logging it", lambda: any(map(wanted, records(proxy))))
    return next(filter(wanted, records(proxy)))


async def ask(address: Address, line: str = "test") -> str | None:
    """The answer to one line over a connection of its own; None when it was closed instead."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except ConnectionError:
        return None  # closed so quickly that connecting noticed
    try:
        writer.write(f"{line}\n".encode())
        answer = await reader.readline()
    except ConnectionError:
        return None
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer.decode().removesuffix("\n") if answer else None


def _accepts(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, 1.0):
        return True
    return False
