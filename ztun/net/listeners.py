"""Listening sockets, and the moment of accepting."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztun.errors import ConfigError
from ztun.mesh.model import canonical_ip, join_host_port
from ztun.net.dial import make_transparent
from ztun.net.namespaces import NetworkNamespace, make_socket
from ztun.net.poller import READABLE

if TYPE_CHECKING:
    from ztun.net.dial import SocketOptions
    from ztun.net.poller import Poller

BACKLOG = 1024  # bursts of connections; the kernel caps it at net.core.somaxconn

_ANY_ADDRESS = ("0.0.0.0", "::")

ACCEPTS_PER_TURN = 64  # then those that are open have their turn
SHORTAGE_SECONDS = (
    1.0  # until the next attempt when there is no descriptor; clients wait in the kernel's queue
)

Accept = Callable[[socket.SocketType, tuple[str, int], tuple[str, int]], None]
"""(connected socket, local address, peer address); the socket is the callee's from then on."""


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
    """A listening socket whose connections go to ``accept``."""

    def __init__(
        self, poller: Poller, sock: socket.socket, accept: Accept, local: tuple[str, int] | None
    ) -> None:
        """``local`` is the address of all connections, None where it can vary."""
        self._poller = poller
        self._sock = sock
        self._family = int(sock.family)  # the property makes an enum each time
        self._accept = accept
        self._local = local
        self._open = True
        self._watch()

    @property
    def address(self) -> tuple[str, int]:
        """(ip, port); raises ``OSError`` once it is closed."""
        ip, port = self._sock.getsockname()[:2]
        return ip, port

    def close(self) -> None:
        """Stop at once; the kernel resets who is in the queue, or gives it to another process that listens."""
        if self._open:
            self._open = False
            self._poller.ignore(self._sock.fileno())
            self._sock.close()

    def finish(self) -> None:
        """Accept who is in the kernel's queue already, then stop: they were promised a connection."""
        for _ in range(BACKLOG + 1):  # as many as the kernel's queue holds
            if not self._open or not self._accept_one():
                break
        self.close()

    def _watch(self) -> None:
        if self._open:
            self._poller.watch(self._sock.fileno(), READABLE, self._ready)

    def _ready(self, _events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._open or not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Whether there may be more."""
        try:
            # socket.accept() makes a socket.socket with its enums; the C type is enough
            fd, name = self._sock._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._poller.ignore(self._sock.fileno())
                self._poller.loop.call_later(SHORTAGE_SECONDS, self._watch)
                return False
            return True  # a connection that was gone before it was accepted (accept(2))
        sock = socket.SocketType(self._family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        local = self._local
        if local is None:
            bound = sock.getsockname()
            local = canonical_ip(bound[0]), bound[1]
        self._accept(sock, local, (canonical_ip(name[0]), name[1]))
        return True


def listen(
    poller: Poller,
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
    return Listener(poller, sock, accept, local)


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
        if kind == socket.SOCK_STREAM:
            # For UDP it would let any user take the port over (socket(7)): the last one bound gets every datagram.
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


def finish_all(listeners: Iterable[Listener]) -> None:
    """Finish several."""
    for listener in listeners:
        listener.finish()


def _hint(error: OSError) -> str:
    return {
        errno.EADDRINUSE: "another process has the port",
        errno.EADDRNOTAVAIL: "the address is not on this machine",
        errno.EACCES: "ports below 1024 need privileges",
    }.get(error.errno or 0, "")
