"""A way from a client to the application through one ztun and one Envoy, in either order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.peers.addresses import AddressBlock, free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.envoy import EnvoyProcess
from tests.peers.envoy_parts import Terminator, TunnelEntry
from tests.peers.node import Forward, NodeProcess, Pod, write_mesh
from tests.peers.traffic import Address, ApplicationProcess

COMMAND_PORT = 9000
GREET_PORT = 9001
FAREWELL_PORT = 9002
PORTS = (COMMAND_PORT, GREET_PORT, FAREWELL_PORT)
NAMES = ("command", "greet", "farewell")
HBONE_PORT = 15008
MAX_LINKS = 16
DRAIN_DEADLINE = "60s"  # longer than any transfer of these tests; a second SIGTERM ends the drain


@dataclass(frozen=True, slots=True)
class Link:
    """An open way: the clients' entries, one for each port of the application, and Envoy's access log."""

    client: Pod
    server: Pod
    application: ApplicationProcess
    node: NodeProcess
    envoy: EnvoyProcess
    records: Path
    command: Address
    greet: Address
    farewell: Address


class Ground:
    """What links are built on: an authority, addresses, and an application at the address of each pod."""

    def __init__(self, directory: Path, block: AddressBlock) -> None:
        self.directory = directory
        self.authority = ThrowAwayAuthority(directory)
        self.block = block
        self._pod_ips = [block.take() for _ in range(MAX_LINKS)]
        self._links = 0
        self.application = ApplicationProcess(
            [(ip, COMMAND_PORT) for ip in self._pod_ips],
            directory / "application.log",
            greet=[(ip, GREET_PORT) for ip in self._pod_ips],
            farewell=[(ip, FAREWELL_PORT) for ip in self._pod_ips],
        )

    def __enter__(self) -> Self:
        self.application.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.application.__exit__(kind, error, trace)

    def _next(self) -> tuple[str, Path]:
        ip = self._pod_ips[self._links]
        directory = self.directory / f"link-{self._links}"
        directory.mkdir()
        self._links += 1
        return ip, directory

    @contextmanager
    def outbound(self, *, requests_per_connection: int | None = None) -> Iterator[Link]:
        """client -> ztun -> Envoy -> application."""
        ip, directory = self._next()
        client, server = Pod("client", self.block.take(), "here"), Pod("server", ip, "envoy")
        records = directory / "connect.json"
        terminator = Terminator(
            "inbound",
            (server.ip, HBONE_PORT),
            self.authority.issue(server.identity),
            {f"{server.ip}:{port}": (server.ip, port) for port in PORTS},
            expected=[client.identity],
            requests_per_connection=requests_per_connection,
            access_log=records,
        )
        entry = self.block.take()
        entries = [(entry, free_port(entry)) for _ in PORTS]
        forwards = [
            Forward(listen, (server.ip, port), client) for listen, port in zip(entries, PORTS, strict=True)
        ]
        node = self._node(directory, [client, server], forwards)
        with EnvoyProcess("envoy", [terminator], directory) as envoy, node:
            yield Link(client, server, self.application, node, envoy, records, *entries)

    @contextmanager
    def inbound(self) -> Iterator[Link]:
        """client -> Envoy -> ztun -> application."""
        ip, directory = self._next()
        client, server = Pod("client", self.block.take(), "envoy"), Pod("server", ip, "here")
        records = directory / "tunnel.log"
        entries = [
            TunnelEntry(
                name,
                (self.block.take(), 0),
                f"{server.ip}:{port}",
                (server.ip, HBONE_PORT),
                self.authority.issue(client.identity),
                server.identity,
                headers={"baggage": "k8s.namespace.name=default"},
                access_log=records,
            )
            for name, port in zip(NAMES, PORTS, strict=True)
        ]
        node = self._node(directory, [client, server], [])
        with node, EnvoyProcess("envoy", entries, directory, half_close=True) as envoy:
            listeners = [envoy.listener(name) for name in NAMES]
            yield Link(client, server, self.application, node, envoy, records, *listeners)

    def _node(self, directory: Path, pods: list[Pod], forwards: list[Forward]) -> NodeProcess:
        return NodeProcess(
            "here",
            config=write_mesh(directory / "mesh", pods),
            authority=self.authority.directory,
            directory=directory,
            forwards=forwards,
            environment={"CONNECTION_TERMINATION_DEADLINE": DRAIN_DEADLINE},
        )
