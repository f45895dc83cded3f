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
from ztun.net.proxy_protocol import ProxyHeader, ProxyHeaderError, parse_proxy_v2
from ztun.net.relay import Relay

if TYPE_CHECKING:
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
        self, transport: asyncio.Transport, uid: str, local: tuple[str, int], peer: tuple[str, int]
    ) -> asyncio.BaseProtocol:
        """Protocol for an accepted connection to the pod ``uid``."""
        client = AppSocket(self._plane.buffers)
        reader = _HeaderReader(self._plane.loop.create_future(), client, transport)
        self._plane.home.spawn(self._serve(client, reader, uid, local, peer))
        return reader

    async def _serve(
        self,
        client: AppSocket,
        reader: _HeaderReader,
        uid: str,
        local: tuple[str, int],
        peer: tuple[str, int],
    ) -> None:
        plane = self._plane
        connection: LiveConnection | None = None
        try:
            workload = self._trusted(uid, local, peer)
            header = await self._header(reader)
            arrival = self._arrival(header, workload, local)
            admitted = self._forwarding.admit(arrival)
            connection = admitted.connection
            plane.connections.opened(connection)
            server = await self._forwarding.reach(admitted)
        except ZtunError as error:
            self._end(client, reader, connection, (local, peer), error)
            return
        except asyncio.CancelledError:
            shutdown = RelayError("shutdown", "the proxy shuts down")
            self._end(client, reader, connection, (local, peer), shutdown)
            raise
        live = connection
        live.relay = Relay(client, server, lambda error: plane.connections.finished(live, error))
        live.relay.start()

    def _end(
        self,
        client: AppSocket,
        reader: _HeaderReader,
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
        reader.give_up()
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

    async def _header(self, reader: _HeaderReader) -> ProxyHeader:
        self._waiting += 1
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                return await reader.header
        except TimeoutError:
            raise CaptureError(
                "proxy_header_timeout", f"no PROXY protocol header within {HEADER_SECONDS:g} s"
            ) from None
        finally:
            self._waiting -= 1

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


class _HeaderReader(asyncio.Protocol):
    """Reads the header of a new connection, then hands the transport and what followed to the client's socket."""

    def __init__(
        self, header: asyncio.Future[ProxyHeader], client: AppSocket, transport: asyncio.Transport
    ) -> None:
        self.header = header
        self._client = client
        self._transport = transport
        self._data = b""

    def give_up(self) -> None:
        """Close a connection whose header has not come."""
        if not self.header.done():
            self.header.cancel()
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Collect the header."""
        if self.header.done():
            return
        self._data += data
        try:
            header = parse_proxy_v2(self._data)
        except ProxyHeaderError as error:
            self._fail("proxy_header", str(error))
            return
        if header is not None:
            self._transport.set_protocol(self._client)
            self._client.connection_made(self._transport)
            self._client.unread(self._data[header.size :])
            self.header.set_result(header)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer left before its header was complete."""
        self._fail("proxy_header_missing", "the connection ended before its PROXY protocol header")

    def _fail(self, code: str, message: str) -> None:
        if not self.header.done():
            self.header.set_exception(CaptureError(code, message))
            self.header.exception()
        self._transport.abort()
