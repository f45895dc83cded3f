"""What makes a proxy a waypoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waypoint.server.forwarding import Forwarding
from waypoint.server.instance import own_pod
from waypoint.server.pod import OwnPod
from waypoint.server.requests import WaypointRequests
from waypoint.server.sandwich import Sandwich
from ztun.errors import ConfigError
from ztun.proxy.routers import CompiledRouter
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.bundle import TrustBundle
    from waypoint.server.instance import WaypointName
    from ztun.errors import ZtunError
    from ztun.mesh.snapshot import Snapshot
    from ztun.proxy.plane import Plane
    from ztun.routing import RoutingEngine
    from ztun.telemetry.config_dump import ServedWorkload


class WaypointRole:
    """The tunnels to one waypoint pod, decided on by an engine."""

    def __init__(self, plane: Plane, waypoint: WaypointName, engine: RoutingEngine) -> None:
        self._plane = plane
        self._waypoint = waypoint
        self._routers = CompiledRouter(engine, plane.metrics)
        forwarding = Forwarding(plane, waypoint, self._routers)
        self._requests = WaypointRequests(plane, forwarding)
        self._pod = OwnPod(plane, self._requests, Sandwich(plane, forwarding))
        self._complaint = ""
        self._log = get_logger("waypoint")

    @property
    def pending(self) -> int:
        """1 while it does not listen."""
        return int(not self._pod.up)

    def served(self) -> Sequence[ServedWorkload]:
        """Its own pod."""
        return self._pod.served()

    async def open(self) -> None:
        """Compile the rules. Raises :class:`ConfigError`, also when it cannot know which pod it is."""
        self._routers.load(self._plane.snapshot)
        own_pod(self._plane.snapshot, self._waypoint, self._plane.settings.workload)

    async def run(self) -> None:
        """Nothing goes on beside the connections."""

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Compile the rules beside the traffic, and listen as the pod that the snapshot shows."""
        await self._routers.recompile(snapshot)
        try:
            workload = own_pod(snapshot, self._waypoint, self._plane.settings.workload)
        except ConfigError as error:
            served = self._pod.served()
            workload = snapshot.workload_by_uid(served[0].workload.uid) if served else None
            self._complain(f"{error} ({error.hint})")
        else:
            self._complain("" if workload is not None else self._missing())
        await self._pod.become(workload)

    def retry_due(self, now: float) -> bool:
        """Whether to try again to listen."""
        return self._pod.retry_due(now)

    def tick(self, now: float) -> None:
        """Keepalive of the accepted tunnels."""
        self._requests.tick(now)

    def cut_revoked(self, bundle: TrustBundle) -> int:
        """Close the tunnels of peers that were revoked."""
        return self._requests.cut_revoked(bundle)

    async def stop_accepting(self) -> None:
        """Close the listeners."""
        await self._pod.stop_accepting()

    def drain(self) -> None:
        """Ask the peers of accepted tunnels to move on."""
        self._requests.drain()

    def close(self, failure: ZtunError) -> None:
        """Cut the accepted tunnels."""
        self._requests.close(failure)

    async def closed(self) -> None:
        """Wait for the last accepted tunnel."""
        await self._requests.closed()

    # -- inside ----------------------------------------------------------------------------------------------

    def _missing(self) -> str:
        pod = self._plane.settings.workload
        named = f" {pod}" if pod else ""
        return (
            f"the mesh has no pod{named} of the waypoint {self._waypoint}: "
            "is there a Gateway of class istio-waypoint with this name, and a pod labelled "
            f"gateway.networking.k8s.io/gateway-name: {self._waypoint.name}?"
        )

    def _complain(self, text: str) -> None:
        """Say it once."""
        if text and text != self._complaint:
            self._log.warning(text)
        self._complaint = text
