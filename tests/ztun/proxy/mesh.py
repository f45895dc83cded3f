"""A mesh of two nodes in one process: real sockets, real TLS, everything of a proxy but its signal handling.

Each mesh has loopback addresses of its own, so the well-known ports are free for every test. Time passes
only where a test says so (:meth:`Node.look_at_connections`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from certs.authority import CertificateAuthority, create_authority
from certs.issuers import Change, Issued, Trust
from certs.request import build_request, new_key
from certs.spiffe import SpiffeId
from certs.store import CertificateStore
from tests.ztun.proxy.journal import Journal, sample
from ztun.config import Forward, ProxySettings
from ztun.errors import RelayError
from ztun.mesh.document import Document
from ztun.mesh.model import Authorization, Service, ServicePort, TunnelProtocol, Vip, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.net.app_socket import AppSocket
from ztun.net.listeners import Listener, listen
from ztun.proxy.entries import open_forward
from ztun.proxy.inbound import Inbound
from ztun.proxy.outbound import Outbound
from ztun.proxy.passthrough import Passthrough
from ztun.proxy.plane import Plane
from ztun.proxy.pods import Pods
from ztun.telemetry.metrics import Metrics

T = TypeVar("T")

_meshes = itertools.count()
APP_PORT = 9000


class LoopbackAddresses:
    """Addresses 127.x.y.1 and up that no other mesh of this run has."""

    def __init__(self) -> None:
        # tests/peers/addresses.py has the second octets up to 209
        self._prefix = f"127.{211 + os.getpid() % 40}.{1 + next(_meshes) % 250}"
        self._next = itertools.count(1)

    def take(self) -> str:
        """The next address."""
        return f"{self._prefix}.{next(self._next)}"


class MemoryCa:
    """An issuer over a real authority in memory."""

    def __init__(self) -> None:
        self.authority: CertificateAuthority = create_authority(now=datetime.now(UTC))
        self.extra_roots: CertificateAuthority | None = None

    async def obtain(self, identity: SpiffeId) -> Issued:
        key = new_key()
        chain = self.authority.sign(build_request(key, identity), identity, now=datetime.now(UTC))
        return Issued(chain, key)

    async def trust(self) -> Trust:
        more = self.extra_roots.roots if self.extra_roots is not None else ()
        return Trust((*self.authority.roots, *more), self.authority.crls)

    async def watch(self, changed: Callable[[Change], None]) -> None:
        """Nothing changes by itself."""

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(slots=True)
class Node:
    """One node proxy."""

    plane: Plane
    pods: Pods
    inbound: Inbound
    outbound: Outbound
    passthrough: Passthrough
    journal: Journal
    metrics: Metrics
    servers: list[Listener]

    def sample(self, name: str, **labels: str) -> float:
        """A metric as a scrape sees it, summed over the labels that are not given."""
        return sample(self.metrics, name, **labels)

    def look_at_connections(self, seconds: float) -> None:
        """What the proxy does with its connections once a second, as if it were ``seconds`` later."""
        for _ in self.plane.connections.sweep(self.plane.loop.time() + seconds):
            pass

    def look_at_tunnels(self, seconds: float) -> None:
        """What the proxy does with its tunnels once a second, as if it were ``seconds`` later."""
        now = self.plane.loop.time() + seconds
        self.plane.home.pool.tick(now)
        self.inbound.tick(now)

    async def take(self, snapshot: Snapshot) -> None:
        """A reload."""
        self.plane.replace_snapshot(snapshot)
        await self.pods.reconcile(snapshot)

    async def stop(self) -> None:
        gone = RelayError("shutdown", "the proxy shuts down")
        for server in self.servers:
            server.close()
        await self.pods.stop_accepting()
        self.plane.connections.cut_where(lambda _: True, gone)
        self.inbound.close(gone)
        await self.plane.home.stop_tasks()
        await self.plane.home.pool.close()
        await self.plane.store.close()
        await asyncio.sleep(0)
        self.plane.poller.close()


class Mesh:
    """Workloads, services and policies, and the node proxies that serve them.

    Add to ``workloads`` and so on, enter it, and call :meth:`apply` after later changes.
    """

    def __init__(self) -> None:
        self.addresses = LoopbackAddresses()
        self.ca = MemoryCa()
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Service] = {}
        self.policies: dict[str, Authorization] = {}
        self.documents: list[Document] = []
        self.settings: dict[str, Any] = {}
        self.nodes: dict[str, Node] = {}
        self._generation = 0

    # -- what is in it ---------------------------------------------------------------------------------------

    def pod(
        self,
        name: str,
        node: str,
        *,
        services: Mapping[str, Mapping[int, int]] | None = None,
        tunnel: bool = True,
        **more: Any,
    ) -> Workload:
        """A pod with an address, a service account and a certificate of its own."""
        pod = Workload(
            uid=f"Kubernetes//Pod/default/{name}",
            name=name,
            namespace="default",
            addresses=(self.addresses.take(),),
            service_account=name,
            node=node,
            tunnel_protocol=TunnelProtocol.HBONE if tunnel else TunnelProtocol.NONE,
            services={("default", _hostname(key)): ports for key, ports in (services or {}).items()},
            canonical_name=name,
            canonical_revision="v1",
            workload_name=name,
            **more,
        )
        self.workloads[name] = pod
        return pod

    def service(self, name: str, ports: Mapping[int, int], vip: str, **more: Any) -> Service:
        """A service; its endpoints are the pods that name it."""
        service = Service(
            name=name,
            namespace="default",
            hostname=_hostname(name),
            vips=(Vip("", vip),),
            ports={number: ServicePort(number, target) for number, target in ports.items()},
            **more,
        )
        self.services[name] = service
        return service

    def snapshot(self) -> Snapshot:
        """The current state."""
        self._generation += 1
        return build_snapshot(
            workloads=self.workloads.values(),
            services=self.services.values(),
            policies=self.policies.values(),
            documents=self.documents,
            generation=self._generation,
        )

    # -- its proxies -----------------------------------------------------------------------------------------

    async def start(self, *names: str, **settings: Any) -> None:
        """Start these node proxies, or one for each node that has pods."""
        for name in names or sorted({pod.node for pod in self.workloads.values()}):
            self.nodes[name] = await self._start(name, {**self.settings, **settings})

    async def _start(self, name: str, settings: Mapping[str, Any]) -> Node:
        plane, journal = await self.plane(name, settings)
        inbound, outbound = Inbound(plane), Outbound(plane)
        passthrough = Passthrough(plane)
        pods = Pods(plane, outbound, inbound, passthrough)
        await pods.reconcile(plane.snapshot)
        return Node(plane, pods, inbound, outbound, passthrough, journal, plane.metrics, [])

    async def plane(self, name: str, settings: Mapping[str, Any]) -> tuple[Plane, Journal]:
        """What a proxy of any role consists of, and where its reports go."""
        store = CertificateStore(self.ca, now=lambda: datetime.now(UTC), rng=random.Random(1))
        await store.start()
        journal = Journal()
        plane = Plane(
            replace(ProxySettings(config_paths=(Path("mesh.yaml"),), node=name, ca="memory"), **settings),
            self.snapshot(),
            store,
            Metrics(),
            journal,  # type: ignore[arg-type]  # the three calls of an access log
            rng=random.Random(2),
        )
        return plane, journal

    async def apply(self) -> None:
        """Give every node the current state."""
        snapshot = self.snapshot()
        for node in self.nodes.values():
            await node.take(snapshot)

    async def enter(self, source: Workload, host: str, port: int = APP_PORT) -> tuple[str, int]:
        """A local port that enters the mesh as ``source`` on its way to ``host`` and ``port``."""
        node = self.nodes[source.node]
        forward = Forward(self.addresses.take(), 0, host, port, source.namespace, source.name)
        server = open_forward(node.plane, node.outbound, forward)
        node.servers.append(server)
        return server.address

    async def plaintext(self, node: Node, host: str, port: int) -> tuple[str, int]:
        """A local port whose connections arrive as captured plaintext for ``host`` and ``port``."""
        plane = node.plane

        def accept(sock: socket.SocketType, local: tuple[str, int], peer: tuple[str, int]) -> None:
            client = AppSocket(plane.poller, sock)
            plane.home.spawn(node.passthrough.serve(client, peer, (host, port)))

        server = listen(
            plane.poller, self.addresses.take(), 0, accept, plane.settings.sockets, purpose="a test"
        )
        node.servers.append(server)
        return server.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            await node.stop()


class Pair(Mesh):
    """The usual mesh: ``client`` on node ``near``, ``server`` on node ``far``."""

    def __init__(self) -> None:
        super().__init__()
        self.client = self.pod("client", "near")
        self.server = self.pod("server", "far")

    @property
    def near(self) -> Node:
        """The client's node proxy."""
        return self.nodes["near"]

    @property
    def far(self) -> Node:
        """The server's node proxy."""
        return self.nodes["far"]

    @property
    def server_ip(self) -> str:
        """The server's address."""
        return self.server.addresses[0]

    async def enter_server(self, port: int = APP_PORT) -> tuple[str, int]:
        """A local port on the way from the client to the server."""
        return await self.enter(self.client, self.server_ip, port)


def _hostname(name: str) -> str:
    return name if "." in name else f"{name}.default.svc.cluster.local"


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds; the test's own limit ends a vain wait."""
    while not condition():
        await asyncio.sleep(0)


def only(items: Iterable[T]) -> T:
    """The only item."""
    (item,) = items
    return item
