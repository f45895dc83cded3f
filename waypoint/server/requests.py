"""Connections that come in tunnels: their CONNECT requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waypoint.server.forwarding import Arrival, Forwarding
from ztun.proxy.tunnels import TunnelServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

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
    ) -> tuple[LiveConnection, Callable[[], Coroutine[None, None, AppSocket | TunnelStream]]]:
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
        return admitted.connection, lambda: self._forwarding.reach(admitted)
