"""The paths that are compared: a pair of ztun node proxies, of Envoys, of nginx, and direct.

All of them lead to the same application and nginx, with certificates of the same authority. Each proxied path
has one process per proxy, its access log written to a file and its metrics on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from tests.peers.addresses import AddressBlock, free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.envoy import EnvoyProcess
from tests.peers.envoy_config import Terminator, TunnelEntry
from tests.peers.nginx import http_application, stream_entry, stream_exit
from tests.peers.node import Forward, NodeProcess, Pod, write_mesh
from tests.peers.process import Process
from tests.peers.traffic import Address, ApplicationProcess

ECHO_PORT = 9000
HTTP_PORT = 8080
HBONE_PORT = 15008
CLIENT = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "client")
SERVER = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "server")


@dataclass(frozen=True, slots=True)
class MeshPath:
    """Where a client connects, and the proxies in between (source first; none on the direct path)."""

    kind: str
    echo: Address
    http: Address
    proxies: tuple[Process, ...]

    def cpu_seconds(self) -> float:
        """CPU time of all proxies so far."""
        return sum(proxy.cpu_seconds() for proxy in self.proxies)


class Mesh:
    """What all paths share: the authority, the application and nginx. A context manager."""

    def __init__(self, directory: Path, *, http: bool = True) -> None:
        self.directory = directory
        self._http = http
        self.authority = ThrowAwayAuthority(directory)
        block = AddressBlock()
        # An address of its own per path keeps the four-tuples of closing connections apart.
        self._pods = {kind: block.take() for kind in KINDS}
        self._entry, self._client = block.take(), block.take()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pods = list(self._pods.values())
        with ExitStack() as stack:
            log = self.directory / "application.log"
            stack.enter_context(ApplicationProcess([(ip, ECHO_PORT) for ip in pods], log))
            if self._http:
                stack.enter_context(http_application([(ip, HTTP_PORT) for ip in pods], self.directory))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @contextmanager
    def open(self, kind: str) -> Iterator[MeshPath]:
        """Fresh proxies of one kind; ended on exit."""
        with KINDS[kind](self) as path:
            yield path

    @contextmanager
    def direct(self) -> Iterator[MeshPath]:
        """No proxy at all."""
        pod = self._pods["direct"]
        yield MeshPath("direct", (pod, ECHO_PORT), (pod, HTTP_PORT), ())

    @contextmanager
    def envoy(self) -> Iterator[MeshPath]:
        """``tunneling_config`` to a CONNECT terminator."""
        pod, server, client = self._pods["envoy"], self.authority.issue(SERVER), self.authority.issue(CLIENT)
        routes = {f"{pod}:{port}": (pod, port) for port in (ECHO_PORT, HTTP_PORT)}
        inbound = Terminator(
            "inbound",
            (pod, HBONE_PORT),
            server,
            routes,
            expected=[CLIENT],
            access_log=self.directory / "envoy-destination.access",
        )
        outbound = [
            TunnelEntry(
                name,
                (self._entry, 0),
                f"{pod}:{port}",
                (pod, HBONE_PORT),
                client,
                SERVER,
                access_log=self.directory / "envoy-source.access",
            )
            for name, port in (("echo", ECHO_PORT), ("http", HTTP_PORT))
        ]
        with (
            EnvoyProcess("envoy-destination", [inbound], self.directory) as destination,
            EnvoyProcess("envoy-source", outbound, self.directory) as source,
        ):
            echo, http = source.listener("echo"), source.listener("http")
            yield MeshPath("envoy", echo, http, (source, destination))

    @contextmanager
    def ztun(self) -> Iterator[MeshPath]:
        """``--forward`` of the client's node to the node of the server's pod."""
        server = Pod(SERVER.service_account, self._pods["ztun"], "destination")
        client = Pod(CLIENT.service_account, self._client, "source")
        config = write_mesh(self.directory / "mesh", [client, server])
        echo, http = (self._entry, free_port(self._entry)), (self._entry, free_port(self._entry))
        forwards = [
            Forward(echo, (server.ip, ECHO_PORT), client),
            Forward(http, (server.ip, HTTP_PORT), client),
        ]
        with (
            self._node("destination", config) as destination,
            self._node("source", config, forwards) as source,
        ):
            yield MeshPath("ztun", echo, http, (source, destination))

    @contextmanager
    def nginx(self) -> Iterator[MeshPath]:
        """``stream`` with mTLS: the same bytes and certificates, but a TLS connection per TCP connection."""
        pod, server, client = self._pods["nginx"], self.authority.issue(SERVER), self.authority.issue(CLIENT)
        inner = {port: (pod, free_port(pod)) for port in (ECHO_PORT, HTTP_PORT)}
        outer = {port: (self._entry, free_port(self._entry)) for port in inner}
        leave = {address: (pod, port) for port, address in inner.items()}
        enter = {address: inner[port] for port, address in outer.items()}
        with (
            stream_exit("nginx-destination", leave, server, self.directory) as destination,
            stream_entry("nginx-source", enter, client, self.directory) as source,
        ):
            yield MeshPath("nginx", outer[ECHO_PORT], outer[HTTP_PORT], (source, destination))

    def _node(self, name: str, config: Path, forwards: Sequence[Forward] = ()) -> NodeProcess:
        return NodeProcess(
            name,
            config=config,
            authority=self.authority.directory,
            directory=self.directory,
            forwards=forwards,
        )


KINDS = {"ztun": Mesh.ztun, "envoy": Mesh.envoy, "direct": Mesh.direct, "nginx": Mesh.nginx}
DEFAULT_KINDS = ("ztun", "envoy", "direct")
