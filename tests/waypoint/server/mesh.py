"""A mesh in one process whose service ``echo`` is behind a waypoint: a client, the waypoint, two servers."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tests.waypoint.conftest import Resources, documents_of
from tests.ztun.proxy.journal import Journal, sample
from tests.ztun.proxy.mesh import APP_PORT, Mesh, Node
from waypoint.engines.ambient import AmbientEngine
from waypoint.server.instance import WaypointName
from waypoint.server.role import WaypointRole
from ztun.errors import RelayError
from ztun.hbone.connect import connect_headers
from ztun.hbone.stream import TunnelStream
from ztun.mesh.model import HBONE_PORT, GatewayAddress
from ztun.net.pool import PoolKey
from ztun.proxy.plane import Plane
from ztun.routing import RoutingEngine

VIP = "192.168.58.10"
OTHER_VIP = "192.168.77.20"
SERVICE_PORT = 19000
WAYPOINT = GatewayAddress(("default", "waypoint.default.svc.cluster.local"))
HBONE = {15008: 15008}
RESPONSE_SECONDS = 20.0


class WaypointNode:
    """The waypoint's proxy."""

    def __init__(self, plane: Plane, role: WaypointRole, journal: Journal) -> None:
        self.plane = plane
        self.role = role
        self.journal = journal

    def sample(self, name: str, **labels: str) -> float:
        """A metric as a scrape sees it, summed over the labels that are not given."""
        return sample(self.plane.metrics, name, **labels)

    async def stop(self) -> None:
        """Cut everything."""
        gone = RelayError("shutdown", "the proxy shuts down")
        await self.role.stop_accepting()
        self.plane.connections.cut_where(lambda _: True, gone)
        self.role.close(gone)
        await self.plane.home.stop_tasks()
        await self.plane.home.pool.close()
        await self.plane.store.close()


class WaypointMesh(Mesh):
    """``client`` on ``near``; ``server`` (label ``version: v1``) and ``other`` (``v2``) on ``far``."""

    def __init__(self) -> None:
        super().__init__()
        self.service("waypoint", HBONE, "10.96.0.1")
        self.service("echo", {SERVICE_PORT: APP_PORT}, VIP, waypoint=WAYPOINT)
        self.service("elsewhere", {SERVICE_PORT: APP_PORT}, OTHER_VIP)
        endpoint = {"echo": {SERVICE_PORT: APP_PORT}}
        self.client = self.pod("client", "near")
        self.server = self.pod("server", "far", services=endpoint, labels={"version": "v1"})
        self.other = self.pod("other", "far", labels={"version": "v2"})
        self.waypoint_pod = self.pod("waypoint", "middle", services={"waypoint": HBONE}, native_tunnel=True)

    @property
    def near(self) -> Node:
        """The client's node proxy."""
        return self.nodes["near"]

    @property
    def far(self) -> Node:
        """The servers' node proxy."""
        return self.nodes["far"]

    def rules(self, resources: Resources) -> None:
        """The routing documents."""
        self.documents = documents_of(resources)

    async def run(self, *, engine: RoutingEngine | None = None, **settings: Any) -> None:
        """Start everything."""
        await self.start("near", "far", **settings)
        plane, journal = await self.plane("middle", {**self.settings, **settings})
        role = WaypointRole(plane, WaypointName("default", "waypoint"), engine or AmbientEngine())
        await role.open()
        await role.reconcile(plane.snapshot)
        self.waypoint = WaypointNode(plane, role, journal)

    async def apply(self) -> None:
        """Give every proxy the current state."""
        snapshot = self.snapshot()
        for node in self.nodes.values():
            await node.take(snapshot)
        self.waypoint.plane.replace_snapshot(snapshot)
        await self.waypoint.role.reconcile(snapshot)

    async def enter_service(self, port: int = SERVICE_PORT) -> tuple[str, int]:
        """A local port on the way from the client to the service."""
        return await self.enter(self.client, VIP, port)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "waypoint"):
            await self.waypoint.stop()
        await super().__aexit__(kind, error, trace)

    async def request(self, authority: str) -> TunnelStream:
        """A CONNECT of the client's own making. Raises :class:`ConnectRefused` with the waypoint's answer."""
        ip = self.waypoint_pod.addresses[0]
        expected = frozenset({self.waypoint_pod.identity})
        key = PoolKey(self.client.identity, expected, (ip, HBONE_PORT), self.client.addresses[0])
        headers = connect_headers(authority, baggage="", forwarded="", traceparent="")
        _, stream = await self.near.plane.home.pool.open(key, headers, RESPONSE_SECONDS)
        return stream
