"""What the machines and the network of a lab are made of.

A fabric gives addresses, says how a program is run on a node or in a pod, and how a client pod enters the mesh.
The loopback fabric needs no privileges: every pod has an address of its own in 127.0.0.0/8, all programs run
side by side, and clients enter through local ports that the node proxy opens for them.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ztun.errors import ConfigError
from ztun.lab.addresses import AddressPlan
from ztun.lab.topology import MeshPlan, PodPlan

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


class Fabric(Protocol):
    """The seam between a mesh and the machines it runs on."""

    @property
    def name(self) -> str:
        """As the command line names it."""

    @property
    def addresses(self) -> AddressPlan:
        """Addresses for the nodes, pods and services."""

    def on_node(self, node: str, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` on a node."""

    def in_pod(self, pod: PodPlan, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` in a pod."""

    def entries(self, plan: MeshPlan) -> tuple[Entry, ...]:
        """How each client reaches each port of each service."""


@dataclass(frozen=True, slots=True)
class LoopbackFabric:
    """Everything on one machine, in 127.``block``.0.0/16: nodes in its first /24, then one /24 per node."""

    block: int
    name: str = "loopback"

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
