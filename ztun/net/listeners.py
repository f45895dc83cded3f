"""Listening sockets, and the moment of accepting: addresses first, then the protocol that fits them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ztun.errors import ConfigError
from ztun.mesh.model import canonical_ip, join_host_port

if TYPE_CHECKING:
    from ztun.net.dial import SocketOptions

BACKLOG = 1024  # bursts of connections; the kernel caps it at net.core.somaxconn

_ANY_ADDRESS = ("0.0.0.0", "::")

Accept = Callable[[asyncio.Transport, tuple[str, int], tuple[str, int]], asyncio.BaseProtocol]
"""(transport, local address, peer address) -> the protocol of the connection."""


class Acceptor(asyncio.Protocol):
    """Takes a new connection and hands it to the protocol that ``accept`` makes for its addresses."""

    def __init__(self, accept: Accept, local: tuple[str, int] | None) -> None:
        self._accept = accept
        self._local = local

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look at the addresses, then step aside."""
        transport = cast("asyncio.Transport", transport)  # uvloop does not subclass it
        # each of these makes a socket object in uvloop, so the local address is asked for only where it can vary
        local = self._local or _address(transport.get_extra_info("sockname"))
        peer = _address(transport.get_extra_info("peername"))
        if local is None or peer is None:
            transport.abort()  # gone before it was accepted
            return
        protocol = self._accept(transport, local, peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _address(name: tuple[str, int] | None) -> tuple[str, int] | None:
    return (canonical_ip(name[0]), name[1]) if name else None


async def listen(
    ip: str, port: int, accept: Accept, options: SocketOptions, *, purpose: str
) -> asyncio.Server:
    """Listen on one address. Raises :class:`ConfigError` that says who might hold it.

    The options are set on the listening socket; Linux hands them to every socket it accepts.
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # an old and a new proxy overlap during an upgrade
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if ip == "::" else 1)
        options.apply(sock)
        sock.bind((ip, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            "listen_failed",
            f"cannot listen on {join_host_port(ip, port)} for {purpose}: {error.strerror}",
            hint=_hint(error),
        ) from error
    local = None if ip in _ANY_ADDRESS else (canonical_ip(ip), int(sock.getsockname()[1]))
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Acceptor(accept, local), sock=sock, backlog=BACKLOG)


def _hint(error: OSError) -> str:
    return {
        errno.EADDRINUSE: "another process has the port",
        errno.EADDRNOTAVAIL: "the address is not on this machine",
        errno.EACCES: "ports below 1024 need privileges",
    }.get(error.errno or 0, "")
