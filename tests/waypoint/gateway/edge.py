"""A mesh with gateways in front as real processes: echo servers on one node, gateways and their clients outside.

Addresses are loopback ones of the test's own, so every pod can have the same well-known ports.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.peers.addresses import AddressBlock, free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Forward, NodeProcess, Pod, ProxyProcess, write_mesh
from tests.peers.process import Process
from tests.peers.traffic import Address
from tests.waypoint.server.ground import (
    APP_PORT,
    SERVICE_PORT,
    VIPS,
    Documents,
    EchoProcess,
    generation,
    logged,
    records,
    service,
    until,
)

GATEWAY_NAMESPACE = "istio-system"
TLS_PORT = 9443
TLS_SERVICE_PORT = 19443

_offsets = itertools.count(300)  # meshes that exist at the same time have addresses of their own


def gateway(name: str, *servers: Mapping[str, Any], **metadata: str) -> dict[str, Any]:
    """A Gateway for the gateway pods labelled ``istio: NAME``, unless ``selects`` names other ones."""
    selects = metadata.pop("selects", name)
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": GATEWAY_NAMESPACE, **metadata},
        "spec": {"selector": {"istio": selects}, "servers": list(servers)},
    }


def server(
    number: int, protocol: str = "TCP", *hosts: str, bind: str = "", tls: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A server of a Gateway."""
    return {
        "port": {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol},
        "hosts": list(hosts or ("*",)),
        **({"bind": bind} if bind else {}),
        **({"tls": tls} if tls is not None else {}),
    }


def to(host: str, port: int = SERVICE_PORT, weight: int | None = None) -> dict[str, Any]:
    """A destination: the service of this name in namespace default."""
    full = f"{host}.default.svc.cluster.local"
    return {
        "destination": {"host": full, "port": {"number": port}},
        **({} if weight is None else {"weight": weight}),
    }


def rules(
    name: str, gateways: Sequence[str], *, hosts: Sequence[str] = ("*",), **sections: Any
) -> dict[str, Any]:
    """A VirtualService for gateways of the gateways' namespace."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hosts": list(hosts),
            "gateways": [f"{GATEWAY_NAMESPACE}/{one}" for one in gateways],
            **sections,
        },
    }


def secret(name: str, namespace: str = GATEWAY_NAMESPACE, **values: str) -> dict[str, Any]:
    """A Secret; ``tls_crt`` becomes ``tls.crt``."""
    data = {key.replace("_", "."): base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": data,
    }


class Edge:
    """Set what differs from the usual before ``start``; call ``apply`` to change it while it runs.

    ``app`` is a pod at whose address the test itself may listen. ``entry`` leads from a pod of the mesh to the
    service echo-server.
    """

    def __init__(self, directory: Path, *, gateways: int = 1, engine: str = "ambient") -> None:
        self.directory = directory
        self.block = AddressBlock(offset=next(_offsets))
        self.authority = ThrowAwayAuthority(directory)
        self.client = self.pod("telnet-client", "near")
        self.prod = self.pod("prod", "far", app="echo-server", version="prod")
        self.gray = self.pod("gray", "far", app="echo-server", version="gray")
        self.second = self.pod("second", "far", app="echo-server-2")
        self.app = self.pod("app", "far")
        self.gateway_pods = [
            self.pod(name, "edge", namespace=GATEWAY_NAMESPACE, istio=name)
            for name in (f"ingressgateway-{number + 1}" for number in range(gateways))
        ]
        self.pods = [self.client, self.prod, self.gray, self.second, self.app, *self.gateway_pods]
        self.services: Documents = [
            service("echo-server", {"app": "echo-server", "version": "prod"}, labels={}),
            service("echo-server-2", {"app": "echo-server-2"}, labels={}),
            self._app_service(),
        ]
        self.documents: Documents = []
        self.environment: dict[str, str] = {}
        self.gateways: list[ProxyProcess] = []
        self.entry: Address = (self.block.take(), 0)
        self._engine = engine
        self._writes = 0
        self._stack = ExitStack()

    def pod(self, name: str, node: str, *, namespace: str = "default", **labels: str) -> Pod:
        """A pod with an address of its own."""
        return Pod(name, self.block.take(), node, namespace, labels)

    def _app_service(self) -> dict[str, Any]:
        ports = [
            {"name": "tcp", "port": SERVICE_PORT, "targetPort": APP_PORT},
            {"name": "tls", "port": TLS_SERVICE_PORT, "targetPort": TLS_PORT},
        ]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "app", "namespace": "default"},
            "spec": {"clusterIP": "192.168.58.30", "selector": {"app": "app"}, "ports": ports},
        }

    @property
    def gateway(self) -> ProxyProcess:
        """The first gateway."""
        return self.gateways[0]

    def address(self, port: int, number: int = 0) -> Address:
        """A port of a gateway."""
        return self.gateway_pods[number].ip, port

    @property
    def config(self) -> Path:
        """The directory for ``--config``."""
        return self.directory / "mesh"

    def write(self) -> None:
        """Write the configuration in one step."""
        draft = self.directory / "draft"
        text = (write_mesh(draft, self.pods, [*self.services, *self.documents]) / "mesh.yaml").read_text()
        self.config.mkdir(exist_ok=True)
        self._writes += 1  # also the same documents again are a change
        (draft / "next").write_text(f"# {self._writes}\n{text}")
        (draft / "next").replace(self.config / "mesh.yaml")

    def start(self, *, echoes: bool = True, near: bool = False) -> None:
        """Start what is needed and wait until it is ready."""
        self.write()
        processes: list[Process] = [self.node("far")]
        if echoes:
            words = {"hello": self.prod, "hello-2": self.second, "hello-gray": self.gray}
            processes += [EchoProcess(pod, say, self.directory) for say, pod in words.items()]
        if near:
            self.entry = self.entry[0], free_port(self.entry[0])
            target = VIPS["echo-server"], SERVICE_PORT
            processes.append(self.node("near", [Forward(self.entry, target, self.client)]))
        self.gateways = [self.gateway_process(pod.name) for pod in self.gateway_pods]
        processes += self.gateways
        for process in processes:
            self.spawn(process)
        for process in processes:
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

    def gateway_process(self, name: str, *more: str) -> ProxyProcess:
        """A gateway, not started."""
        command = ["waypoint", "gateway", "--name", name, "--namespace", GATEWAY_NAMESPACE]
        return ProxyProcess(
            name,
            [*command, "--engine", self._engine, *more],
            config=self.config,
            authority=self.authority.directory,
            directory=self.directory,
            environment={"LOG_FORMAT": "json", **self.environment},
        )

    async def apply(self, documents: Documents | None = None) -> None:
        """Change the configuration; returns when every gateway listens and decides by it."""
        if documents is not None:
            self.documents = documents
        before = [generation(one) for one in self.gateways]
        self.write()
        for process, old in zip(self.gateways, before, strict=True):
            await until(process, "following its configuration", lambda: follows(process, old))  # noqa: B023

    async def caught_up(self, number: int = 0) -> None:
        """Wait until the log of a gateway has all that was said before; it is written in order."""
        ip = self.block.take()
        _, writer = await asyncio.open_connection(*self.address(SERVICE_PORT, number), local_addr=(ip, 0))
        writer.close()
        await writer.wait_closed()
        await logged(self.gateways[number], lambda one: str(one.get("src.addr")).startswith(f"{ip}:"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def follows(process: ProxyProcess, before: int) -> bool:
    """Whether a gateway has laid out its listeners for a newer configuration."""
    loaded = generation(process)
    laid_out = process.sample("ztun_gateway_generation") or 0
    return loaded > before and laid_out >= loaded


def said(process: Process, pattern: str) -> list[dict[str, Any]]:
    """The records so far whose message matches."""
    return [one for one in records(process) if re.search(pattern, str(one.get("message", "")))]


async def says(process: Process, pattern: str) -> list[dict[str, Any]]:
    """The same, once there is one: lines are written by a thread of their own."""
    await until(process, f"saying {pattern!r}", lambda: bool(said(process, pattern)))
    return said(process, pattern)


async def refused(address: Address) -> bool:
    """Whether nothing listens."""
    try:
        _, writer = await asyncio.open_connection(*address)
    except ConnectionRefusedError:
        return True
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return False
