"""Ways into the mesh that need no capture and no privileges: forwarded ports and SOCKS5."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from ztun.errors import CaptureError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import AppSocket
from ztun.net.listeners import ORDINARY, Listener, Listening, listen
from ztun.net.socks5 import GENERAL, SocksError, SocksNegotiation, reply, reply_code
from ztun.proxy.outbound import wait_for_workload
from ztun.proxy.resolving import resolve_destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.config import Forward
    from ztun.dns.zone import Family
    from ztun.mesh.model import Workload
    from ztun.proxy.outbound import Outbound
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site


def local_workload(plane: Plane, namespace: str, name: str) -> Workload | None:
    """The workload of this node with the name of a pod, else the first pod of that Deployment."""
    pods = [
        one for one in plane.snapshot.workloads_of_node(plane.settings.node) if one.namespace == namespace
    ]
    for one in pods:
        if one.name == name:
            return one
    return next((one for one in sorted(pods, key=lambda pod: pod.name) if one.workload_name == name), None)


async def open_forward(plane: Plane, outbound: Outbound, forward: Forward) -> Listener:
    """Listen on a forwarded port; whoever connects enters the mesh as the workload that the forward names."""

    def accept(
        transport: asyncio.Transport, local: tuple[str, int], peer: tuple[str, int]
    ) -> asyncio.BaseProtocol:
        client = AppSocket(plane.buffers)
        plane.home.spawn(serve(client, peer))
        return client

    async def serve(client: AppSocket, peer: tuple[str, int]) -> None:
        name = f"{forward.namespace}/{forward.workload}"
        try:
            source = await wait_for_workload(
                plane, lambda: local_workload(plane, forward.namespace, forward.workload), name
            )
        except ZtunError as error:
            plane.connections.refused(
                "outbound", f"{peer[0]}:{peer[1]}", f"{forward.host}:{forward.port}", error
            )
            client.abort(ErrorCode.CONNECT_ERROR)
            return
        except asyncio.CancelledError:
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        # the client stands for the workload, so the tunnel is dialled from the workload's address
        address = (source.addresses[0], peer[1]) if source.addresses else peer
        await outbound.serve(client, source, address, forward.host, forward.port)

    return await listen(
        forward.listen_ip,
        forward.listen_port,
        accept,
        plane.settings.sockets,
        purpose=f"--forward to {forward.host}:{forward.port}",
    )


async def open_socks5(
    plane: Plane,
    site: Site,
    outbound: Outbound,
    address: tuple[str, int],
    find: Callable[[], Workload | None],
    how: Listening = ORDINARY,
) -> Listener:
    """Listen for SOCKS5 for the pod that ``find`` gives.

    Only the pod itself may use it, or anybody where ``address`` (ip, port) is one of the loopback interface.
    """
    ip, port = address
    loopback = ipaddress.ip_address(ip).is_loopback

    def accept(
        transport: asyncio.Transport, local: tuple[str, int], peer: tuple[str, int]
    ) -> asyncio.BaseProtocol:
        client = AppSocket(plane.buffers)
        conversation = _SocksClient(plane, client, transport)
        site.spawn(serve(client, peer, conversation))
        return conversation

    async def serve(client: AppSocket, peer: tuple[str, int], conversation: _SocksClient) -> None:
        source = find()
        try:
            if source is None or not (loopback or peer[0] in source.addresses):
                raise CaptureError("unknown_source", f"{peer[0]} may not enter the mesh as this workload")
            request = await conversation.negotiate()
        except ZtunError as error:
            plane.connections.refused("outbound", f"{peer[0]}:{peer[1]}", f"{ip}:{port}", error)
            conversation.give_up()
            return
        except asyncio.CancelledError:  # the pod or the proxy is going
            conversation.give_up()
            raise
        host, target_port = request
        family: Family = 6 if ":" in peer[0] else 4
        try:
            host = await resolve_destination(plane, site, source, host, target_port, family)
        except ZtunError as error:
            plane.connections.refused("outbound", f"{peer[0]}:{peer[1]}", f"{host}:{target_port}", error)
            conversation.answer(error)
            client.abort(ErrorCode.NO_ERROR)
            return
        except asyncio.CancelledError:
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        client_address = (source.addresses[0], peer[1])
        await outbound.serve(client, source, client_address, host, target_port, answered=conversation.answer)

    return await listen(ip, port, accept, plane.settings.sockets, purpose="SOCKS5", how=how)


class _SocksClient(asyncio.Protocol):
    """The negotiation on a new connection; hands the transport to the client's socket when it is done."""

    def __init__(self, plane: Plane, client: AppSocket, transport: asyncio.Transport) -> None:
        self._plane = plane
        self._client = client
        self._transport = transport
        self._negotiation = SocksNegotiation()
        self._done: asyncio.Future[tuple[str, int]] = plane.loop.create_future()

    async def negotiate(self) -> tuple[str, int]:
        """(host, port) that the client asks for. Raises :class:`CaptureError`."""
        limit = self._plane.settings.timeouts.socks5
        try:
            async with asyncio.timeout(limit):
                return await self._done
        except TimeoutError:
            raise CaptureError("socks5_timeout", f"no SOCKS5 request within {limit:g} s") from None

    def give_up(self) -> None:
        """Close the connection."""
        if not self._done.done():
            self._done.cancel()
        self._transport.close()

    def answer(self, error: ZtunError | None) -> None:
        """Send the reply, after the dial."""
        if not self._transport.is_closing():
            self._transport.write(reply(reply_code(error)))

    def data_received(self, data: bytes) -> None:
        """Negotiate; nothing is read beyond the request until the destination has answered."""
        try:
            answer = self._negotiation.feed(data)
        except SocksError as error:
            self._transport.write(error.reply)
            self._fail(str(error))
            return
        if answer:
            self._transport.write(answer)
        request = self._negotiation.request
        if request is None or self._done.done():
            return
        if self._negotiation.rest:
            self._transport.write(reply(GENERAL))
            self._fail("the client sent data before the reply")
            return
        self._transport.set_protocol(self._client)
        self._client.connection_made(self._transport)
        self._done.set_result((request.host, request.port))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left during the negotiation."""
        if not self._done.done():
            self._done.set_exception(
                CaptureError("socks5_closed", "the client left during the SOCKS5 negotiation")
            )
            self._done.exception()

    def _fail(self, message: str) -> None:
        if not self._done.done():
            self._done.set_exception(CaptureError("socks5_request", message))
            self._done.exception()
        self._transport.close()
