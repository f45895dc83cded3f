"""Ways into the mesh that need no capture and no privileges: forwarded ports and SOCKS5."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

from ztun.errors import CaptureError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import AppSocket
from ztun.net.listeners import ORDINARY, Listener, Listening, listen
from ztun.net.peek import early_bytes
from ztun.net.socks5 import GENERAL, SocksError, SocksNegotiation, reply, reply_code
from ztun.proxy.outbound import wait_for_workload
from ztun.proxy.resolving import is_alias, resolve_destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.config import Forward
    from ztun.dns.zone import Family
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
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


def open_forward(plane: Plane, outbound: Outbound, forward: Forward) -> Listener:
    """Listen on a forwarded port; whoever connects enters the mesh as the workload that the forward names."""

    known: tuple[Snapshot, Workload | None, bool] | None = None

    def look() -> tuple[Workload | None, bool]:
        """The workload, and whether the name that it goes to stands for another one."""
        nonlocal known
        if known is None or known[0] is not plane.snapshot:
            source = local_workload(plane, forward.namespace, forward.workload)
            alias = source is not None and is_alias(plane, source, forward.host)
            known = plane.snapshot, source, alias
        return known[1:]

    def accept(sock: socket.SocketType, local: tuple[str, int], peer: tuple[str, int]) -> None:
        client = AppSocket(plane.poller, sock)
        source, alias = look()
        if source is not None and not alias:
            enter(client, source, peer, forward.host)
        else:
            plane.home.spawn(wait(client, peer))

    def enter(client: AppSocket, source: Workload, peer: tuple[str, int], host: str) -> None:
        # the client stands for the workload, so the tunnel is dialled from the workload's address
        address = (source.addresses[0], peer[1]) if source.addresses else peer
        outbound.take(client, source, address, host, forward.port)

    async def wait(client: AppSocket, peer: tuple[str, int]) -> None:
        host, family = forward.host, _family(peer)
        try:
            what = f"{forward.namespace}/{forward.workload}"
            source = await wait_for_workload(plane, lambda: look()[0], what)
            if look()[1]:
                host = await resolve_destination(plane, plane.home, source, host, forward.port, family)
        except ZtunError as error:
            plane.connections.refused(
                "outbound", f"{peer[0]}:{peer[1]}", f"{forward.host}:{forward.port}", error
            )
            client.abort(ErrorCode.CONNECT_ERROR)
            return
        except asyncio.CancelledError:
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        enter(client, source, peer, host)

    return listen(
        plane.poller,
        forward.listen_ip,
        forward.listen_port,
        accept,
        plane.settings.sockets,
        purpose=f"--forward to {forward.host}:{forward.port}",
    )


def open_socks5(
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

    def accept(sock: socket.SocketType, local: tuple[str, int], peer: tuple[str, int]) -> None:
        client = AppSocket(plane.poller, sock)
        site.spawn(serve(client, peer, _SocksClient(plane, client)))

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
        try:
            host = await resolve_destination(plane, site, source, host, target_port, _family(peer))
        except ZtunError as error:
            plane.connections.refused("outbound", f"{peer[0]}:{peer[1]}", f"{host}:{target_port}", error)
            conversation.answer(error)
            client.abort(ErrorCode.NO_ERROR)
            return
        except asyncio.CancelledError:
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        client_address = (source.addresses[0], peer[1]) if source.addresses else peer
        await outbound.serve(client, source, client_address, host, target_port, answered=conversation.answer)

    return listen(plane.poller, ip, port, accept, plane.settings.sockets, purpose="SOCKS5", how=how)


def _family(peer: tuple[str, int]) -> Family:
    return 6 if ":" in peer[0] else 4


class _SocksClient:
    """The negotiation on a new connection, before it is started."""

    def __init__(self, plane: Plane, client: AppSocket) -> None:
        self._plane = plane
        self._client = client
        self._negotiation = SocksNegotiation()

    async def negotiate(self) -> tuple[str, int]:
        """(host, port) that the client asks for. Raises :class:`CaptureError`."""
        limit = self._plane.settings.timeouts.socks5
        try:
            async with asyncio.timeout(limit):
                while self._negotiation.request is None:
                    await early_bytes(self._client)
                    self._take(self._client.take_early())
        except TimeoutError:
            raise CaptureError("socks5_timeout", f"no SOCKS5 request within {limit:g} s") from None
        # nothing is read beyond the request until the destination has answered
        if self._negotiation.rest:
            self._client.offer(memoryview(reply(GENERAL)))
            raise CaptureError("socks5_request", "the client sent data before the reply")
        request = self._negotiation.request
        return request.host, request.port

    def give_up(self) -> None:
        """Close the connection, behind what was answered."""
        self._client.abort(ErrorCode.NO_ERROR)

    def answer(self, error: ZtunError | None) -> None:
        """Send the reply, after the dial."""
        self._client.offer(memoryview(reply(reply_code(error))))

    def _take(self, data: bytes) -> None:
        if not data:
            raise CaptureError("socks5_closed", "the client left during the SOCKS5 negotiation")
        try:
            answer = self._negotiation.feed(data)
        except SocksError as error:
            self._client.offer(memoryview(error.reply))
            raise CaptureError("socks5_request", str(error)) from error
        if answer:
            self._client.offer(memoryview(answer))
