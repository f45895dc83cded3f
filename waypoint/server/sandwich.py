"""Connections that a node proxy took out of their tunnels: a PROXY protocol header tells where they come from.

Who may connect is all that makes the client's identity in the header credible, so only the pod itself may: the node
proxy works inside the pod's network and dials from the pod's address, for which the kernel may put loopback.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from certs.spiffe import SpiffeError, SpiffeId
from waypoint.server.forwarding import Arrival, Forwarding
from ztun.errors import CaptureError, RelayError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.peek import early_bytes
from ztun.net.proxy_protocol import ProxyHeader, ProxyHeaderError, parse_proxy_v2
from ztun.net.relay import Relay

if TYPE_CHECKING:
    import socket

    from ztun.mesh.model import Workload
    from ztun.proxy.connections import LiveConnection
    from ztun.proxy.plane import Plane

HEADER_SECONDS = 10.0  # the node proxy writes the header at once, in one piece
MAX_WAITING = 1024  # connections whose header has not come yet
_LOOPBACK = ("127.0.0.1", "::1")  # no packet from another host can have it (RFC 1122 section 3.2.1.3)


class Sandwich:
    """Serves the connections of the node proxy in front of the waypoint."""

    def __init__(self, plane: Plane, forwarding: Forwarding) -> None:
        self._plane = plane
        self._forwarding = forwarding
        self._waiting = 0

    def accept(
        self, sock: socket.SocketType, uid: str, local: tuple[str, int], peer: tuple[str, int]
    ) -> None:
        """Take an accepted connection to the pod ``uid``."""
        self._plane.home.spawn(self._serve(AppSocket(self._plane.poller, sock), uid, local, peer))

    async def _serve(
        self,
        client: AppSocket,
        uid: str,
        local: tuple[str, int],
        peer: tuple[str, int],
    ) -> None:
        plane = self._plane
        connection: LiveConnection | None = None
        try:
            workload = self._trusted(uid, local, peer)
            header = await self._header(client)
            arrival = self._arrival(header, workload, local)
            admitted = self._forwarding.admit(arrival)
            connection = admitted.connection
            plane.connections.opened(connection)
            server = await self._forwarding.reach(admitted)
        except ZtunError as error:
            self._end(client, connection, (local, peer), error)
            return
        except asyncio.CancelledError:
            shutdown = RelayError("shutdown", "the proxy shuts down")
            self._end(client, connection, (local, peer), shutdown)
            raise
        live = connection
        live.relay = Relay(client, server, lambda error: plane.connections.finished(live, error))
        live.relay.start()

    def _end(
        self,
        client: AppSocket,
        connection: LiveConnection | None,
        addresses: tuple[tuple[str, int], tuple[str, int]],
        error: ZtunError,
    ) -> None:
        """It was not established: report it and close."""
        connections = self._plane.connections
        if connection is not None:
            connections.finished(connection, error)
        else:
            local, peer = addresses
            connections.refused("inbound", join_host_port(*peer), join_host_port(*local), error)
        client.abort(ErrorCode.CONNECT_ERROR)

    def _trusted(self, uid: str, local: tuple[str, int], peer: tuple[str, int]) -> Workload:
        workload = self._plane.snapshot.workload_by_uid(uid)
        if workload is None or self._plane.draining:
            raise CaptureError("no_workload", "the pod of this address is gone")
        if self._waiting >= MAX_WAITING:
            raise CaptureError(
                "proxy_header_flood", "too many connections wait for their PROXY protocol header"
            )
        if peer[0] != local[0] and peer[0] not in _LOOPBACK:
            raise CaptureError(
                "untrusted_proxy",
                f"{peer[0]} may not tell this waypoint who a client is",
                hint="only the node proxy does, from the pod's own address",
            )
        return workload

    async def _header(self, client: AppSocket) -> ProxyHeader:
        """The header, taken off the connection; what followed it is left."""
        self._waiting += 1
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                while (header := parse_proxy_v2(client.early)) is None:
                    if client.read_ended or client.closed:
                        raise CaptureError(
                            "proxy_header_missing", "the connection ended before its PROXY protocol header"
                        )
                    await early_bytes(client)
        except TimeoutError:
            raise CaptureError(
                "proxy_header_timeout", f"no PROXY protocol header within {HEADER_SECONDS:g} s"
            ) from None
        except ProxyHeaderError as error:
            raise CaptureError("proxy_header", str(error)) from error
        finally:
            self._waiting -= 1
        client.unread(client.take_early()[header.size :])
        return header

    def _arrival(self, header: ProxyHeader, workload: Workload, local: tuple[str, int]) -> Arrival:
        if header.source is None or header.destination is None:
            raise CaptureError("proxy_header", "the PROXY protocol header names no destination")
        try:
            identity = SpiffeId.parse(header.identity) if header.identity is not None else None
        except SpiffeError as error:
            raise CaptureError("proxy_header", f"the client's identity cannot be read: {error}") from error
        started = self._plane.loop.time()
        authority = join_host_port(*header.destination)
        return Arrival(workload, local, header.source, identity, authority, started)
