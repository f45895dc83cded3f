"""Two nodes with the real programs, and pods in which the tests' own applications listen and dial."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.ztun.proxy.applications import Application, Wire, Wires
from ztun.lab.lab import Lab
from ztun.lab.netns import NetnsFabric, netns_fabric
from ztun.lab.programs import read_log
from ztun.lab.topology import MeshPlan, PodPlan, plan_mesh
from ztun.resources.documents import parse_documents

APP_PORT, SERVICE_PORT = 9000, 80
NEAR, FAR = "node-a", "node-b"
PODS = {  # name: node, whose proxy it has
    "client": (NEAR, "ambient"),
    "neighbour": (NEAR, "ambient"),
    "server": (FAR, "ambient"),
    "stranger": (NEAR, "none"),
    "drifter": (FAR, "none"),
}
SETTINGS = {  # short, so that a peer that is cut off is noticed within a test
    "ZTUN_CONNECT_TIMEOUT": "2s",
    "ZTUN_CONNECT_RESPONSE_TIMEOUT": "3s",
}


@dataclass
class Ground:
    """The mesh, and what a test does in it."""

    lab: Lab
    fabric: NetnsFabric
    plan: MeshPlan

    def pod(self, name: str) -> PodPlan:
        return self.plan.pod("default", name)

    def address(self, pod: str, family: int, *, by: str) -> tuple[str, int]:
        """Where a client dials: the pod itself, or the service in front of it."""
        if by == "pod":
            return self.pod(pod).addresses[family == 6], APP_PORT
        service = self.plan.service("default", pod)
        return (service.vip6 if family == 6 else service.vip), SERVICE_PORT

    async def listen(self, wires: Wires, where: str, ip: str, *, echo: bool = False) -> Application:
        """An application in a pod, on a node or outside."""
        application = Application(wires, echo=echo)
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        make = partial(socket.create_server, (ip, APP_PORT), family=family, backlog=1024)
        sock = self.fabric.inside(where, make)
        wires.keep_server(await asyncio.start_server(application._serve, sock=sock))
        return application

    async def dial(self, wires: Wires, where: str, ip: str, port: int = APP_PORT) -> Wire:
        """A connection from a pod, a node or outside."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        sock = self.lab.socket(where, family)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (ip, port))
        except BaseException:
            sock.close()
            raise
        return wires.keep(Wire(*await asyncio.open_connection(sock=sock)))

    def outside(self, family: int) -> str:
        network = self.fabric.network
        return network.outside_address6() if family == 6 else network.outside_address()

    def marks(self) -> dict[str, int]:
        """Where the logs of the proxies end now."""
        return {node.name: self.lab.log_size(node.name) for node in self.plan.nodes}

    def records(self, node: str, since: int) -> list[dict[str, Any]]:
        """The access-log records of a proxy after a mark."""
        return list(read_log(self.lab.programs.logs / f"{node}.log", since, 1 << 26))

    async def record(self, node: str, since: int, direction: str, **fields: str) -> Mapping[str, Any]:
        """The first record of a connection that ended since a mark; waits for it."""

        def wanted(one: Mapping[str, Any]) -> bool:
            return one.get("direction") == direction and fields.items() <= one.items()

        return await self.lab.access_record(node, since, wanted)


def documents() -> list[dict[str, Any]]:
    """Pods without containers, each with a service account of its own, and services in front of two of them."""
    found: list[dict[str, Any]] = []
    for name, (node, mode) in PODS.items():
        labels = {"app": name, **({"istio.io/dataplane-mode": mode} if mode == "none" else {})}
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": {"nodeName": node, "serviceAccountName": name},
            }
        )
    for name in ("server", "neighbour"):
        ports = [{"name": "tcp", "port": SERVICE_PORT, "targetPort": APP_PORT, "protocol": "TCP"}]
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"selector": {"app": name}, "ports": ports},
            }
        )
    return found


@contextlib.asynccontextmanager
async def laid_out(directory: Path) -> AsyncIterator[Ground]:
    parsed, problems = parse_documents(yaml.safe_dump_all(documents()), file="nodes.yaml")
    assert not problems
    with netns_fabric() as fabric:
        plan = plan_mesh(parsed, fabric.addresses)
        lab = Lab(plan, fabric, directory / "lab", observed=True, environment=SETTINGS)
        async with lab.running():
            yield Ground(lab, fabric, plan)


async def exchange(client: Wire, server: Wire, word: bytes = b"question") -> None:
    """A question and an answer."""
    await client.send(word)
    assert await server.receive(len(word)) == word
    await server.send(word[::-1])
    assert await client.receive(len(word)) == word[::-1]


async def close(client: Wire, server: Wire) -> None:
    """End both sides in order."""
    client.end()
    assert await server.receive_all() == b""
    server.end()
    assert await client.ending() == "eof"
