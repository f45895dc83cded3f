"""Two node proxies as the processes that operators run, around a client and a server of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.peers.addresses import free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Forward, NodeProcess, Pod, write_mesh
from tests.peers.process import READY_SECONDS, Process
from tests.peers.traffic import Address
from tests.ztun.proxy.applications import Application, Wire, Wires
from tests.ztun.proxy.mesh import LoopbackAddresses

APP_PORT = 9000


class RealPair:
    """``client`` on node ``near``, ``server`` on node ``far``; ``entry`` leads from one to the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.addresses = LoopbackAddresses()
        self.authority = ThrowAwayAuthority(directory)
        self.client = Pod("client", self.addresses.take(), "near")
        self.server = Pod("server", self.addresses.take(), "far")
        self.pods = [self.client, self.server]
        self.documents: list[Mapping[str, Any]] = []
        self.entry = self.forward_port()
        self.forwards = [Forward(self.entry, (self.server.ip, APP_PORT), self.client)]
        self.environment: dict[str, str] = {}
        self._stack = ExitStack()

    def forward_port(self) -> Address:
        """An address and port for a forward."""
        address = self.addresses.take()
        return address, free_port(address)

    def write(self) -> None:
        """Write the configuration in one step; running proxies follow."""
        draft = write_mesh(self.directory / "draft", self.pods, self.documents) / "mesh.yaml"
        self.replace(draft.read_text())

    def replace(self, text: str) -> None:
        """Put a text in the place of the configuration; nobody sees half of it."""
        path = self.directory / "mesh" / "mesh.yaml"
        path.parent.mkdir(exist_ok=True)
        draft = self.directory / "draft.yaml"
        draft.write_text(text)
        draft.replace(path)

    def start(self) -> None:
        """Start both proxies and wait until they are ready."""
        self.write()
        self.near = self.spawn("near", self.forwards)
        self.far = self.spawn("far")
        self.near.wait_ready()
        self.far.wait_ready()

    def spawn(self, node: str, forwards: Sequence[Forward] = (), *, name: str = "") -> NodeProcess:
        """Start one proxy without waiting for it."""
        directory = self.directory / (name or node)
        directory.mkdir()
        process = NodeProcess(
            node,
            config=self.directory / "mesh",
            authority=self.authority.directory,
            directory=directory,
            forwards=forwards,
            environment={"LOG_FORMAT": "json", **self.environment},
        )
        process.spawn()
        self._stack.push(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


async def connect(pair: RealPair, wires: Wires, application: Application) -> tuple[Wire, Wire]:
    """One connection from the client to the server's application, which has carried a byte each way."""
    client = await wires.dial(pair.entry)
    server = await application.accept()
    await exchange(client, server)
    return client, server


async def exchange(client: Wire, server: Wire) -> None:
    """A question and an answer."""
    await client.send(b"question")
    assert await server.receive(8) == b"question"
    await server.send(b"answer")
    assert await client.receive(6) == b"answer"


async def wait_for(process: Process, what: str, condition: Any, seconds: float = READY_SECONDS) -> None:
    """Wait until a process shows something, without holding up the applications on this loop."""
    await asyncio.to_thread(process.wait_until, condition, what, seconds)


def lines(process: Process) -> list[dict[str, Any]]:
    """The log of a proxy."""
    found = []
    for line in process.log.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # being written, or not of the proxy
    return found


def completed(process: Process) -> list[dict[str, Any]]:
    """The access-log records of connections that ended."""
    return [line for line in lines(process) if line.get("message") == "connection complete"]


async def completion(process: Process, since: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The first record with these values after the ``since`` that there were; waits for it.

    A connection of an earlier test may end late. None stands for a field that is not there.
    """

    def found() -> list[dict[str, Any]]:
        return [
            one
            for one in completed(process)[since:]
            if all(one.get(key) == value for key, value in wanted.items())
        ]

    await wait_for(process, f"done with {dict(wanted)}", lambda: bool(found()))
    return found()[0]


def metric(process: NodeProcess, name: str, **labels: str) -> float:
    """A sample, summed over the labels that are not given."""
    return sum(
        one.value
        for family in text_string_to_metric_families(process.metrics())
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    )


def ready_status(process: NodeProcess) -> int:
    """What the readiness port answers; 0 when it does not."""
    try:
        return process._get(process._readiness, "/healthz/ready").status_code
    except httpx.HTTPError:
        return 0
