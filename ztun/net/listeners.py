"""Listening sockets, and the moment of accepting: addresses first, then the protocol that fits them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ztun.errors import ConfigError
from ztun.mesh.model import canonical_ip, join_host_port
from ztun.net.dial import make_transparent
from ztun.net.namespaces import NetworkNamespace, make_socket

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


@dataclass(frozen=True, slots=True)
class Listening:
    """How to listen. ``namespace`` is where, this process's own when there is none."""

    namespace: NetworkNamespace | None = None
    backlog: int = BACKLOG
    port_reuse: bool = True
    """An old and a new proxy listen side by side during an upgrade (SO_REUSEPORT)."""
    transparent: bool | None = False
    """Whether accepted connections may have any local address: yes, no, or where the system allows it (None)."""


ORDINARY = Listening()


class Listener:
    """A listening socket that is served by the loop."""

    def __init__(self, server: asyncio.Server, sock: socket.socket, make: Callable[[], Acceptor]) -> None:
        self._server = server
        self._sock = sock
        self._make = make

    @property
    def address(self) -> tuple[str, int]:
        """(ip, port); raises ``OSError`` once it is closed."""
        ip, port = self._sock.getsockname()[:2]
        return ip, port

    def close(self) -> None:
        """Stop at once; the kernel resets who is in the queue, or gives it to another process that listens."""
        self._server.close()

    async def finish(self) -> None:
        """Stop, but first take who is in the kernel's queue already: they were promised a connection."""
        loop = self._server.get_loop()
        taken: list[asyncio.Future[tuple[asyncio.Transport, Acceptor]]] = []
        while self._server.is_serving():
            try:
                sock, _ = self._sock.accept()
            except OSError:  # mostly because there is nobody left
                break
            sock.setblocking(False)
            taken.append(asyncio.ensure_future(loop.connect_accepted_socket(self._make, sock)))
        self.close()
        await asyncio.gather(*taken, return_exceptions=True)


async def listen(
    ip: str,
    port: int,
    accept: Accept,
    options: SocketOptions,
    *,
    purpose: str,
    how: Listening = ORDINARY,
) -> Listener:
    """Listen on one address. Raises :class:`ConfigError` that says who might hold it.

    The options are set on the listening socket; Linux hands them to every socket it accepts.
    """
    sock = bind(ip, port, options, purpose=purpose, how=how)
    try:
        sock.listen(how.backlog)
    except OSError as error:
        sock.close()
        raise cannot_listen(ip, port, purpose, error) from error
    local = None if ip in _ANY_ADDRESS else (canonical_ip(ip), int(sock.getsockname()[1]))
    loop = asyncio.get_running_loop()

    def make() -> Acceptor:
        return Acceptor(accept, local)

    return Listener(await loop.create_server(make, sock=sock, backlog=how.backlog), sock, make)


def bind(
    ip: str,
    port: int,
    options: SocketOptions,
    *,
    purpose: str,
    how: Listening = ORDINARY,
    kind: int = socket.SOCK_STREAM,
) -> socket.socket:
    """A socket with an address, TCP or UDP by ``kind``. Raises :class:`ConfigError` like :func:`listen`."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        sock = make_socket(family, kind, how.namespace)
    except OSError as error:
        raise cannot_listen(ip, port, purpose, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if how.port_reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if ip == "::" else 1)
        if how.transparent or how.transparent is None:
            with contextlib.suppress(*(() if how.transparent else (OSError,))):
                make_transparent(sock)
        options.apply(sock)
        sock.bind((ip, port))
    except OSError as error:
        sock.close()
        raise cannot_listen(ip, port, purpose, error) from error
    return sock


def cannot_listen(ip: str, port: int, purpose: str, error: OSError) -> ConfigError:
    """The error for an address that cannot be had."""
    return ConfigError(
        "listen_failed",
        f"cannot listen on {join_host_port(ip, port)} for {purpose}: {error.strerror}",
        hint=_hint(error),
    )


async def finish_all(listeners: Iterable[Listener]) -> None:
    """Finish several at once."""
    await asyncio.gather(*(listener.finish() for listener in listeners))


def _hint(error: OSError) -> str:
    return {
        errno.EADDRINUSE: "another process has the port",
        errno.EADDRNOTAVAIL: "the address is not on this machine",
        errno.EACCES: "ports below 1024 need privileges",
    }.get(error.errno or 0, "")
