"""Redirected traffic of one network namespace: what its pods send, and what comes to them in plaintext."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

from ztun.config import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT
from ztun.errors import CaptureError, ConfigError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.lookup import OWN_PORTS
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.listeners import Listener, Listening, listen
from ztun.net.namespaces import has_ipv6
from ztun.net.original_destination import original_destination
from ztun.proxy.outbound import wait_for_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.mesh.model import Workload
    from ztun.proxy.outbound import Outbound
    from ztun.proxy.passthrough import Passthrough
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site


class Captures:
    """Accepts redirected connections. ``find`` gives the local workload that has a client's address."""

    def __init__(
        self,
        plane: Plane,
        site: Site,
        outbound: Outbound,
        passthrough: Passthrough,
        find: Callable[[str], Workload | None],
    ) -> None:
        self._plane = plane
        self._site = site
        self._outbound = outbound
        self._passthrough = passthrough
        self._find = find

    def open(self, how: Listening) -> list[Listener]:
        """Listen on both ports. Raises :class:`ConfigError`; nothing is open then."""
        opened: list[Listener] = []
        ip = any_address(self._plane, self._site)
        try:
            for port, accept, purpose in (
                (OUTBOUND_PORT, self._accept_outbound, "outbound capture"),
                (INBOUND_PLAINTEXT_PORT, self._accept_plaintext, "inbound plaintext capture"),
            ):
                plane = self._plane
                opened.append(
                    listen(plane.poller, ip, port, accept, plane.settings.sockets, purpose=purpose, how=how)
                )
        except ConfigError:
            for listener in opened:
                listener.close()
            raise
        return opened

    def _accept_outbound(
        self, sock: socket.SocketType, local: tuple[str, int], peer: tuple[str, int]
    ) -> None:
        client = AppSocket(self._plane.poller, sock)
        destination = original_destination(sock)
        ip, port = destination
        if port in OWN_PORTS and (ip == peer[0] or ipaddress.ip_address(ip).is_loopback):
            error = CaptureError(
                "self_call",
                "attempted recursive call to ourselves",
                hint="the connection was not redirected by the kernel, it came to the proxy's port directly",
            )
            self._refuse(client, peer, destination, error)
            return
        source = self._find(peer[0])
        if source is not None:
            self._outbound.take(client, source, peer, *destination)
        else:
            self._site.spawn(self._wait(client, peer, destination))

    async def _wait(self, client: AppSocket, peer: tuple[str, int], destination: tuple[str, int]) -> None:
        """For a workload that the mesh does not know yet."""
        try:
            source = await wait_for_workload(self._plane, lambda: self._find(peer[0]), peer[0])
        except ZtunError as error:
            self._refuse(client, peer, destination, error)
            return
        except asyncio.CancelledError:  # the pod or the proxy is going
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        self._outbound.take(client, source, peer, *destination)

    def _refuse(
        self, client: AppSocket, peer: tuple[str, int], destination: tuple[str, int], error: ZtunError
    ) -> None:
        connections = self._plane.connections
        connections.refused("outbound", join_host_port(*peer), join_host_port(*destination), error)
        client.abort(ErrorCode.CONNECT_ERROR)

    def _accept_plaintext(
        self, sock: socket.SocketType, local: tuple[str, int], peer: tuple[str, int]
    ) -> None:
        client = AppSocket(self._plane.poller, sock)
        destination = original_destination(sock)
        self._site.spawn(self._passthrough.serve(client, peer, destination))


def any_address(plane: Plane, site: Site) -> str:
    """``::`` takes both families; IPv6 may be switched off, by a setting, in the kernel or in the namespace."""
    if not plane.settings.ipv6:
        return "0.0.0.0"
    return "::" if (has_ipv6() if site.namespace is None else site.namespace.run(has_ipv6)) else "0.0.0.0"
