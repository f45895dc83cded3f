"""Which programs make up a mesh: their command lines, their environment, and what tells that they are ready."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ztun.agent.control import ask
from ztun.errors import ZtunError
from ztun.lab.fabric import TAPPED_PORT, Entry, Fabric
from ztun.lab.process import LabError, Program
from ztun.lab.topology import MeshPlan, NodePlan, PodPlan

LOOPBACK = "127.0.0.1"
ADMIN_PORT, METRICS_PORT, READINESS_PORT, SOCKS5_PORT = 15000, 15020, 15021, 15080
NEXT_NODE = 1000  # added to these ports per further proxy of a machine, where they are free
HTTP_SECONDS = 5.0  # for an admin answer
ZTUN = (sys.executable, "-m", "ztun")


@dataclass(frozen=True, slots=True)
class ProxyPorts:
    """Where a proxy is (a node or a pod, by name) and the local ports that it answers on."""

    where: str
    admin: int
    metrics: int
    readiness: int


@dataclass(frozen=True, slots=True)
class Companion:
    """A proxy of one pod, besides the node proxies: what follows ``python -m``, without the options of all.

    With ``dedicated`` the connections of its pod go through it.
    """

    name: str
    command: tuple[str, ...]
    pod: PodPlan
    dedicated: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A program, what tells that it is ready, and the word for that."""

    program: Program
    condition: Callable[[], Awaitable[bool]]
    what: str = "ready"


@dataclass(slots=True)
class Programs:
    """Makes the programs of a lab, each with a log of its own. ``ports`` fills while they are made."""

    plan: MeshPlan
    fabric: Fabric
    configuration: Path
    authority: Path
    logs: Path
    observed: bool
    entries: Sequence[Entry]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings of all proxies, besides those that make them what they are."""
    ports: dict[str, ProxyPorts] = field(default_factory=dict)

    def of_mesh(self, companions: Sequence[Companion]) -> Iterator[Started]:
        """Servers, agents and proxies, in the order of their start."""
        for pod in self.plan.servers:
            yield from self.echoes(pod)
        for node in self.plan.nodes:
            if self.fabric.runtime is not None:
                yield self.agent(node, self.fabric.runtime)
            yield self.node_proxy(node)
        for one in companions:
            if self.fabric.runtime is not None and one.dedicated:
                yield self._capture(one.pod, self.fabric.runtime)
            yield self.companion(one)

    def echoes(self, pod: PodPlan) -> Iterator[Started]:
        """The echo servers of a pod."""
        for number, echo in enumerate(pod.echoes):
            ports = ",".join(map(str, echo.ports))
            # A pod with an address of its own listens like a container does, on all of its addresses.
            where = ("--host", pod.ip) if self.fabric.runtime is None else ()
            command = [*ZTUN, "echo", *where, "--port", ports, "--say", echo.say]
            name = f"{pod.owner}-{number}" if number else pod.owner
            program = Program(name, self.fabric.in_pod(pod, command), self._log(name))
            yield Started(program, partial(self._accepts, pod.name, pod.ip, echo.ports[0]), "listening")

    def agent(self, node: NodePlan, runtime: Path) -> Started:
        """The node agent, which is ready once all pods of the node are captured."""
        name = f"{node.name}-agent"
        sockets = agent_sockets(runtime, node.name)
        command = [*ZTUN, "agent", "--directory", str(self.configuration), "--node", node.name]
        command += [
            "--uds",
            str(sockets.uds),
            "--control",
            str(sockets.control),
            "--state",
            str(sockets.state),
        ]
        program = Program(name, self.fabric.on_node(node.name, command), self._log(name))
        wanted = {
            f"{pod.namespace}/{pod.name}"
            for pod in self.plan.pods
            if pod.node == node.name and pod.mode == "ambient"
        }
        return Started(program, partial(_enrolled, sockets.control, wanted), "done with enrolling its pods")

    def node_proxy(self, node: NodePlan) -> Started:
        """The node proxy."""
        command = [sys.executable, "-m", "ztun", "proxy", "--node", node.name]
        environment = {}
        if self.fabric.runtime is None:
            for entry in self.entries:
                if entry.client.node == node.name and entry.client.mode == "ambient":
                    command += ["--forward", entry.forward]
            environment["UNSTABLE_ENABLE_SOCKS5"] = "true"
        else:
            environment["INPOD_ENABLED"] = "true"
            environment["INPOD_UDS"] = str(agent_sockets(self.fabric.runtime, node.name).uds)
            environment["ENABLE_ORIG_SRC"] = "true"
        placed = partial(self.fabric.on_node, node.name)
        return self._proxy(node.name, node.name, command, placed, environment)

    def companion(self, one: Companion) -> Started:
        """The proxy of one pod."""
        command, environment = [sys.executable, "-m", *one.command], {}
        if one.dedicated and self.fabric.runtime is None:
            for entry in self.entries:
                if entry.client == one.pod:
                    command += ["--forward", entry.forward]
        elif one.dedicated:
            environment = {"ZTUN_CAPTURE": "true", "PACKET_MARK": "1337"}
        return self._proxy(one.name, one.pod.name, command, partial(self.fabric.in_pod, one.pod), environment)

    def _proxy(
        self,
        name: str,
        where: str,
        command: list[str],
        placed: Callable[[Sequence[str]], list[str]],
        environment: dict[str, str],
    ) -> Started:
        number = 0 if self.fabric.runtime is not None else len(self.ports)
        wanted = (port + number * NEXT_NODE for port in (ADMIN_PORT, METRICS_PORT, READINESS_PORT))
        ports = ProxyPorts(where, *(self.fabric.inside(where, partial(_free_port, port)) for port in wanted))
        self.ports[name] = ports
        command += ["--config", str(self.configuration), "--ca", str(self.authority)]
        command += ["--admin-port", str(ports.admin), "--metrics-port", str(ports.metrics)]
        command += ["--readiness-port", str(ports.readiness)]
        if self.observed:
            command += ["--access-log", "json"]
            if self.fabric.runtime is None:
                environment["ZTUN_HBONE_PORT"] = str(TAPPED_PORT)
        program = Program(name, placed(command), self._log(name), {**environment, **self.environment})
        return Started(program, partial(self._is_ready, where, ports.readiness))

    def _capture(self, pod: PodPlan, runtime: Path) -> Started:
        """The command that captures a pod for the proxy in it; it ends when it has."""
        name = f"{pod.owner}-capture"
        command = [*ZTUN, "enroll", "--self", "--state", str(runtime / pod.netns)]
        program = Program(name, self.fabric.in_pod(pod, command), self._log(name), once=True)
        return Started(program, program.succeeded, "done with capturing its pod")

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    async def _accepts(self, where: str, ip: str, port: int) -> bool:
        def connect() -> bool:
            with socket.socket() as sock:
                sock.settimeout(HTTP_SECONDS)
                return sock.connect_ex((ip, port)) == 0

        return await asyncio.to_thread(self.fabric.inside, where, connect)

    async def _is_ready(self, where: str, port: int) -> bool:
        try:
            await get(self.fabric, where, port, "/healthz/ready")
        except (OSError, http.client.HTTPException, LabError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class AgentSockets:
    """Where the agent of a node listens and keeps its state."""

    uds: Path
    control: Path
    state: Path


def agent_sockets(runtime: Path, node: str) -> AgentSockets:
    """The places of a node's agent."""
    directory = runtime / node
    return AgentSockets(directory / "zds.sock", directory / "control.sock", directory / "state")


async def get(fabric: Fabric, where: str, port: int, path: str) -> bytes:
    """What a proxy answers on one of its local ports.

    Raises ``OSError``, ``HTTPException``, and :class:`LabError` when the answer is not 200.
    """

    def fetch() -> bytes:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=HTTP_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise LabError("lab_http", f"{path} at port {port}: status {response.status}")
        return body

    return await asyncio.to_thread(fabric.inside, where, fetch)


async def _enrolled(control: Path, wanted: set[str]) -> bool:
    """Whether exactly these pods are in the mesh and nothing is left to do."""
    with suppress(ZtunError, OSError):
        answer: dict[str, Any] = await asyncio.to_thread(ask, control, {"command": "list"})
        found = {f"{one['namespace']}/{one['pod']}": one["state"] for one in answer["enrolments"]}
        return found == dict.fromkeys(wanted, "enrolled")
    return False


def _free_port(wanted: int) -> int:
    """The wanted port, or any other that is free on 127.0.0.1 at this moment."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise LabError("lab_no_port", f"no port is free on {LOOPBACK}")


def read_log(log: Path, since: int, limit: int) -> Iterator[dict[str, Any]]:
    """The access-log records of a proxy after a mark; at most ``limit`` bytes are read."""
    with log.open("rb") as file:
        file.seek(since)
        for line in file.read(limit).splitlines():
            # A line that is being written at this moment is read whole the next time.
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("scope") == "access":
                    yield record
