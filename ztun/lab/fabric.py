"""What the machines and the network of a lab are made of.

A fabric gives addresses, says how a program is run on a node or in a pod, and how a client pod enters the mesh.
The loopback fabric needs no privileges: every pod has an address of its own in 127.0.0.0/8, all programs run
side by side, and clients enter through local ports that the node proxy opens for them. In the other one, ``netns``,
nodes and pods are network namespaces and clients are captured.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ztun.errors import ConfigError
from ztun.lab.addresses import AddressPlan
from ztun.lab.tap import Tap, Watch
from ztun.lab.topology import MeshPlan, PodPlan
from ztun.mesh.model import HBONE_PORT

T = TypeVar("T")

OUTSIDE = ""
"""Stands for a machine outside of the mesh, where the name of a node or of a pod is asked for."""
TAPPED_PORT = 25008  # where the proxies take HBONE when a tap stands on the usual port
NODES = ("node-a", "node-b")
FIRST_BLOCK, LAST_BLOCK = 210, 249  # of 127.x.0.0/16: one lab each
RESERVATION_PORT = 15999  # outside the ports that a proxy uses


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a program on this machine connects to in order to reach ``host:port`` as a client pod."""

    client: PodPlan
    ip: str
    port: int
    host: str
    host_port: int

    @property
    def forward(self) -> str:
        """The value of ``ztun proxy --forward``."""
        to = f"{self.host}:{self.host_port}"
        return f"{self.ip}:{self.port}={to}@{self.client.namespace}/{self.client.name}"


class Observer(Protocol):
    """Sees what passes between proxies."""

    async def start(self) -> None:
        """Look on from now."""

    async def close(self) -> None:
        """Look away."""

    def watch(self, watch: Watch) -> AbstractContextManager[Watch]:
        """Let ``watch`` see what passes until the end of the context."""


class Fabric(Protocol):
    """The seam between a mesh and the machines it runs on."""

    @property
    def name(self) -> str:
        """As the command line names it."""

    @property
    def runtime(self) -> Path | None:
        """Directory for the sockets and the state of node agents; None where pods are not captured."""

    @property
    def addresses(self) -> AddressPlan:
        """Addresses for the nodes, pods and services."""

    def lay_out(self, plan: MeshPlan) -> AbstractContextManager[None]:
        """Make the machines of a mesh; they are removed at the end of the context."""

    def on_node(self, node: str, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` on a node."""

    def in_pod(self, pod: PodPlan, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` in a pod."""

    def entries(self, plan: MeshPlan) -> tuple[Entry, ...]:
        """How each client reaches each port of each service."""

    def inside(self, where: str, work: Callable[[], T]) -> T:
        """Call a short function as on a node, in a pod (by their names) or ``OUTSIDE``."""

    def observers(self, plan: MeshPlan) -> Sequence[Observer]:
        """Who sees what passes between the proxies of this plan."""


@dataclass(frozen=True, slots=True)
class LoopbackFabric:
    """Everything on one machine, in 127.``block``.0.0/16: nodes in its first /24, then one /24 per node."""

    block: int
    name: str = "loopback"
    runtime: None = None

    @property
    def addresses(self) -> AddressPlan:
        """Addresses for the nodes, pods and services."""
        return AddressPlan(
            nodes={node: f"127.{self.block}.0.{number}" for number, node in enumerate(NODES, 1)},
            pods={
                node: ipaddress.IPv4Network(f"127.{self.block}.{number}.0/24")
                for number, node in enumerate(NODES, 1)
            },
        )

    def lay_out(self, plan: MeshPlan) -> AbstractContextManager[None]:
        """Nothing is to be made."""
        return nullcontext()

    def on_node(self, node: str, command: Sequence[str]) -> list[str]:
        """The command itself: nodes are processes here."""
        return list(command)

    def in_pod(self, pod: PodPlan, command: Sequence[str]) -> list[str]:
        """The command itself: a pod is an address here."""
        return list(command)

    def entries(self, plan: MeshPlan) -> tuple[Entry, ...]:
        """A port on each client pod's address per service port: the same number where it is free."""
        entries = []
        for client in plan.clients:
            taken: set[int] = set()
            for service in plan.services:
                for port in service.ports:
                    local = next(number for number in range(port, 65536) if number not in taken)
                    taken.add(local)
                    entries.append(Entry(client, client.ip, local, service.hostname, port))
        return tuple(entries)

    def inside(self, where: str, work: Callable[[], T]) -> T:
        """Here: everybody is on this machine."""
        return work()

    def observers(self, plan: MeshPlan) -> list[Observer]:
        """A relay in front of every pod's proxy, which listens on ``TAPPED_PORT`` then."""
        return [Tap((pod.ip, HBONE_PORT), (pod.ip, TAPPED_PORT)) for pod in plan.pods]


@contextmanager
def loopback_fabric() -> Iterator[LoopbackFabric]:
    """A block of loopback addresses that no other lab uses, kept until the end of the context.

    Raises :class:`ConfigError` when this system has only one loopback address, or all are in use.
    """
    for block in range(FIRST_BLOCK, LAST_BLOCK + 1):
        reservation = socket.socket()
        try:
            # Bound and not listening is enough: the port of that address cannot be had twice.
            reservation.bind((f"127.{block}.0.1", RESERVATION_PORT))
        except OSError as error:
            reservation.close()
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    "lab_loopback",
                    f"127.{block}.0.1 cannot be used: {error.strerror}",
                    hint="the loopback fabric needs Linux, where all of 127.0.0.0/8 is local",
                ) from error
            continue
        with reservation:
            yield LoopbackFabric(block)
        return
    raise ConfigError(
        "lab_loopback",
        f"all blocks 127.{FIRST_BLOCK}.0.0/16 to 127.{LAST_BLOCK}.0.0/16 are in use",
        hint="stop other runs of ztun demo",
    )
