"""The paths that are compared: ztun, Envoy, nginx, and direct; through two proxies, or three with a waypoint.

All of them lead to the same application and nginx, with certificates of the same authority. Each proxied path
has one process per proxy, its access log written to a file and its metrics on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from certs.spiffe import SpiffeId
from tests.bench.documents import (
    CLIENT,
    ECHO_PORT,
    HBONE_PORT,
    HTTP_PORT,
    PORTS,
    SERVER,
    VIP,
    WAYPOINT,
    Documents,
    server_policy,
    server_service,
    waypoint_documents,
    write_documents,
)
from tests.bench.rows import Way
from tests.peers.addresses import AddressBlock, free_port
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.envoy import EnvoyProcess
from tests.peers.envoy_parts import Onward, Terminator, TunnelEntry
from tests.peers.nginx import http_application, stream_entry, stream_exit
from tests.peers.node import Forward, NodeProcess, Pod, ProxyProcess, write_mesh
from tests.peers.process import Process
from tests.peers.traffic import Address, ApplicationProcess

SIDES = ("source", "destination")


@dataclass(frozen=True, slots=True)
class MeshPath:
    """Where a client connects, and the proxies in between (source first; none on the direct path)."""

    kind: str
    echo: Address
    http: Address
    proxies: tuple[Process, ...]
    configs: tuple[Path, ...] = ()
    """The ``--config`` directory of each proxy, where it is one of ztun's."""
    lags: tuple[Path, ...] = ()
    """The file that the event loop of each proxy tells its lags to, where it is ``watched``."""

    @property
    def alive(self) -> bool:
        """Whether all proxies still run."""
        return all(proxy.running for proxy in self.proxies)

    def cpu_seconds(self) -> float:
        """CPU time of all proxies so far."""
        return sum(proxy.cpu_seconds() for proxy in self.proxies)


class Mesh:
    """What all paths share: the authority, the application and nginx. A context manager.

    ``extra_pods`` is how many server pods there are beside those of the compared paths.
    """

    def __init__(self, directory: Path, *, http: bool = True, extra_pods: int = 0) -> None:
        self.directory = directory
        self._http = http
        self.authority = ThrowAwayAuthority(directory)
        self._block = block = AddressBlock()
        # An address of its own per path keeps the four-tuples of closing connections apart.
        self._pods = {opener: block.take() for way in OPENERS.values() for opener in way.values()}
        self.extra_pods = [block.take() for _ in range(extra_pods)]
        self._entry = block.take()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pods = [*self._pods.values(), *self.extra_pods]
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
    def open(self, kind: str, way: Way = Way.PAIR) -> Iterator[MeshPath]:
        """Fresh proxies of one kind; ended on exit."""
        opener = OPENERS[way][kind]
        with opener(self, self._pods[opener]) as path:
            yield path

    @contextmanager
    def direct(self, pod: str) -> Iterator[MeshPath]:
        """No proxy at all."""
        yield MeshPath("direct", (pod, ECHO_PORT), (pod, HTTP_PORT), ())

    @contextmanager
    def envoy(self, pod: str) -> Iterator[MeshPath]:
        """``tunneling_config`` to a CONNECT terminator."""
        inbound = self._envoy_terminator(pod, CLIENT, "envoy")
        outbound = self._envoy_entries(pod, (pod, HBONE_PORT), SERVER, "envoy")
        with (
            EnvoyProcess("envoy-destination", [inbound], self.directory) as destination,
            EnvoyProcess("envoy-source", outbound, self.directory) as source,
        ):
            echo, http = source.listener("echo"), source.listener("http")
            yield MeshPath("envoy", echo, http, (source, destination))

    @contextmanager
    def envoy_waypoint(self, pod: str) -> Iterator[MeshPath]:
        """The same with a third Envoy between the two, which takes CONNECT for the virtual address."""
        middle = (self._block.take(), HBONE_PORT)
        inbound = self._envoy_terminator(pod, WAYPOINT, "envoy-waypoint")
        onward = Onward(
            "waypoint",
            middle,
            self.authority.issue(WAYPOINT),
            {f"{VIP}:{port}": f"{pod}:{port}" for port in PORTS.values()},
            (pod, HBONE_PORT),
            SERVER,
            clients=[CLIENT],
            allowed=[CLIENT],
            access_log=self.directory / "envoy-waypoint-middle.access",
        )
        outbound = self._envoy_entries(VIP, middle, WAYPOINT, "envoy-waypoint")
        with (
            EnvoyProcess("envoy-waypoint-destination", [inbound], self.directory) as destination,
            EnvoyProcess("envoy-waypoint-middle", [onward], self.directory) as waypoint,
            EnvoyProcess("envoy-waypoint-source", outbound, self.directory) as source,
        ):
            echo, http = source.listener("echo"), source.listener("http")
            yield MeshPath("envoy", echo, http, (source, waypoint, destination))

    def _envoy_terminator(self, pod: str, client: SpiffeId, name: str) -> Terminator:
        return Terminator(
            "inbound",
            (pod, HBONE_PORT),
            self.authority.issue(SERVER),
            {f"{pod}:{port}": (pod, port) for port in PORTS.values()},
            expected=[client],
            allowed=[client],
            access_log=self.directory / f"{name}-destination.access",
        )

    def _envoy_entries(self, host: str, peer: Address, expected: SpiffeId, name: str) -> list[TunnelEntry]:
        return [
            TunnelEntry(
                port_name,
                (self._entry, 0),
                f"{host}:{port}",
                peer,
                self.authority.issue(CLIENT),
                expected,
                access_log=self.directory / f"{name}-source.access",
            )
            for port_name, port in PORTS.items()
        ]

    @contextmanager
    def ztun(
        self, pod: str, *, tag: str = "pair", documents: Documents = (), watched: bool = False
    ) -> Iterator[MeshPath]:
        """``--forward`` of the client's node to the node of the server's pod.

        With more ``documents`` each proxy has a configuration directory of its own, in whose ``more.yaml`` they are,
        and the client dials the virtual address of the server's service. ``watched`` proxies time their event loops.
        """
        pods = [Pod(CLIENT.service_account, self._block.take(), f"{tag}-source")]
        pods += [Pod(SERVER.service_account, pod, f"{tag}-destination")]
        own = [server_policy(CLIENT)]
        if documents:
            own.append(server_service(waypoint=False))
        configs = []
        lags = tuple(self.directory / f"{tag}-{side}.lag" for side in SIDES) if watched else ()
        for side in SIDES:
            configs.append(write_mesh(self.directory / f"mesh-{tag}-{side}", pods, own))
            if documents:
                write_documents(configs[-1] / "more.yaml", documents)
        forwards = self._forwards(VIP if documents else pod, pods[0])
        with (
            self._node(f"{tag}-destination", configs[1], lag=lags[1] if watched else None) as destination,
            self._node(f"{tag}-source", configs[0], forwards, lag=lags[0] if watched else None) as source,
        ):
            echo, http = (forward.listen for forward in forwards)
            yield MeshPath("ztun", echo, http, (source, destination), tuple(configs), lags)

    @contextmanager
    def ztun_waypoint(
        self, pod: str, *, tag: str = "waypoint", documents: Documents = ()
    ) -> Iterator[MeshPath]:
        """``waypoint run`` between the two, which routes connections to the virtual address by a VirtualService."""
        pods = [
            Pod(CLIENT.service_account, self._block.take(), f"{tag}-source"),
            Pod(SERVER.service_account, pod, f"{tag}-destination"),
            Pod(
                WAYPOINT.service_account,
                self._block.take(),
                f"{tag}-middle",
                labels={"gateway.networking.k8s.io/gateway-name": "waypoint"},
            ),
        ]
        config = write_mesh(
            self.directory / f"mesh-{tag}",
            pods,
            [server_service(waypoint=True), server_policy(WAYPOINT), *waypoint_documents()],
        )
        if documents:
            write_documents(config / "more.yaml", documents)
        forwards = self._forwards(VIP, pods[0])
        waypoint = ProxyProcess(
            f"ztun-{tag}-middle",
            ["waypoint", "run", "--name", "waypoint", "--namespace", "default"],
            config=config,
            authority=self.authority.directory,
            directory=self.directory,
        )
        with (
            self._node(f"{tag}-destination", config) as destination,
            waypoint,
            self._node(f"{tag}-source", config, forwards) as source,
        ):
            echo, http = (forward.listen for forward in forwards)
            yield MeshPath("ztun", echo, http, (source, waypoint, destination))

    def _forwards(self, host: str, client: Pod) -> list[Forward]:
        return [
            Forward((self._entry, free_port(self._entry)), (host, port), client) for port in PORTS.values()
        ]

    @contextmanager
    def nginx(self, pod: str) -> Iterator[MeshPath]:
        """``stream`` with mTLS: the same bytes and certificates, but a TLS connection per TCP connection."""
        server, client = self.authority.issue(SERVER), self.authority.issue(CLIENT)
        inner = {port: (pod, free_port(pod)) for port in (ECHO_PORT, HTTP_PORT)}
        outer = {port: (self._entry, free_port(self._entry)) for port in inner}
        leave = {address: (pod, port) for port, address in inner.items()}
        enter = {address: inner[port] for port, address in outer.items()}
        with (
            stream_exit("nginx-destination", leave, server, self.directory) as destination,
            stream_entry("nginx-source", enter, client, self.directory) as source,
        ):
            yield MeshPath("nginx", outer[ECHO_PORT], outer[HTTP_PORT], (source, destination))

    def _node(
        self, name: str, config: Path, forwards: Sequence[Forward] = (), *, lag: Path | None = None
    ) -> NodeProcess:
        return NodeProcess(
            name,
            config=config,
            authority=self.authority.directory,
            directory=self.directory,
            forwards=forwards,
            wrapper=["tests.bench.growth.watched", str(lag)] if lag is not None else (),
        )


Opener = Callable[[Mesh, str], AbstractContextManager[MeshPath]]
OPENERS: Mapping[Way, Mapping[str, Opener]] = {
    Way.PAIR: {"ztun": Mesh.ztun, "envoy": Mesh.envoy, "nginx": Mesh.nginx, "direct": Mesh.direct},
    Way.WAYPOINT: {"ztun": Mesh.ztun_waypoint, "envoy": Mesh.envoy_waypoint},
}
KINDS = tuple(OPENERS[Way.PAIR])
