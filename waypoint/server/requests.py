"""Connections that come in tunnels: their CONNECT requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waypoint.server.forwarding import Arrival, Forwarding
from ztun.proxy.tunnels import Approach, TunnelServer

if TYPE_CHECKING:
    from waypoint.server.forwarding import Admitted
    from ztun.hbone.connect import ConnectRequest
    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.net.inbound import InboundTunnel
    from ztun.proxy.connections import LiveConnection
    from ztun.proxy.plane import Plane


class WaypointRequests(TunnelServer):
    """Serves HBONE for what is behind the waypoint. The client is who its certificate says."""

    def __init__(self, plane: Plane, forwarding: Forwarding) -> None:
        super().__init__(plane)
        self._forwarding = forwarding

    def _admit(
        self, tunnel: InboundTunnel, local: Workload, request: ConnectRequest, started: float
    ) -> tuple[LiveConnection, Approach]:
        assert tunnel.peer is not None
        admitted = self._forwarding.admit(
            Arrival(
                local,
                tunnel.local,
                tunnel.source,
                tunnel.peer.identity,
                request.authority,
                started,
                tunnel.peer,
            )
        )
        return admitted.connection, _Onward(self._forwarding, admitted)


class _Onward:
    """The way to what the engine chose, mostly a tunnel."""

    __slots__ = ("_admitted", "_forwarding")

    def __init__(self, forwarding: Forwarding, admitted: Admitted) -> None:
        self._forwarding = forwarding
        self._admitted = admitted

    def at_once(self) -> None:
        """The answer of the next hop is always waited for."""

    async def wait(self) -> AppSocket | TunnelStream:
        """Ask authorization and make the server end. Raises :class:`ZtunError`."""
        return await self._forwarding.reach(self._admitted)
