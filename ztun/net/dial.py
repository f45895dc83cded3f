"""Making outgoing TCP connections: source address, marks, keepalive, time limit.

Source: ztunnel's socket options (mark, nodelay, keepalive) and its 10 s dial timeout.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass

from ztun.errors import ConnectError, NetworkPolicySuspected
from ztun.mesh.model import HBONE_PORT, join_host_port
from ztun.net.namespaces import NetworkNamespace, make_socket

IP_TRANSPARENT = 19
IP_FREEBIND = 15
IPV6_TRANSPARENT = 75
IPV6_FREEBIND = 78
IP_BIND_ADDRESS_NO_PORT = 24
SO_MARK = 36
TCP_USER_TIMEOUT = 18


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What is set on every socket of the data plane. Times in seconds.

    Keepalive starts before conntrack forgets a half-closed connection (60 s), else its FIN would find no redirect.
    """

    mark: int | None = None
    keepalive: bool = True
    keepalive_time: int = 45
    keepalive_interval: int = 15
    keepalive_probes: int = 9
    user_timeout: bool = False

    def apply(self, sock: socket.socket) -> None:
        """Set the options; raises ``OSError`` when the kernel refuses one (a mark needs NET_ADMIN).

        On a UDP socket that is the mark alone.
        """
        if self.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.mark)
        if sock.type != socket.SOCK_STREAM:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.keepalive_time)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.keepalive_interval)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.keepalive_probes)
            if self.user_timeout:
                limit = self.keepalive_time + self.keepalive_interval * self.keepalive_probes
                sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, limit * 1000)


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected socket, and whether it has the source address that was asked for."""

    sock: socket.socket
    source_kept: bool


async def connect(
    address: tuple[str, int],
    *,
    options: SocketOptions,
    timeout: float,
    source_ip: str | None = None,
    namespace: NetworkNamespace | None = None,
) -> Dialled:
    """Connect to ``address`` (ip, port), from ``source_ip`` where the system allows that.

    ``namespace`` is where the socket is made, this process's own when there is none.

    Raises :class:`ConnectError` with a code (``connect_timeout``, ``connect_refused``, ``connect_unreachable``,
    ``connect_failed``); :class:`NetworkPolicySuspected` when an HBONE port does not answer at all.
    """
    ip, port = address
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    peer = join_host_port(ip, port)
    try:
        sock = make_socket(family, socket.SOCK_STREAM, namespace)
    except OSError as error:
        raise _connect_error(error, peer) from error
    try:
        options.apply(sock)
        source_kept = source_ip is None or source_ip == ip or _bind_source(sock, family, source_ip)
        if not _connect_now(sock, address):
            async with asyncio.timeout(timeout):
                await _connected(sock)
    except TimeoutError:
        sock.close()
        if port == HBONE_PORT:
            raise NetworkPolicySuspected(
                "connect_timeout",
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
                hint="allow TCP 15008 between the nodes and to the pod",
                peer=peer,
            ) from None
        raise ConnectError(
            "connect_timeout",
            f"connection timed out after {timeout:g} s",
            hint="is the address routable?",
            peer=peer,
        ) from None
    except OSError as error:
        sock.close()
        raise _connect_error(error, peer) from error
    except BaseException:
        sock.close()
        raise
    return Dialled(sock, source_kept)


def _connect_now(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Start to connect; True when that is already done, as it is for an address on this machine.

    The kernel answers EINPROGRESS even then; asking for the peer's name saves two turns of the event loop.
    """
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        try:
            sock.getpeername()
        except OSError:
            return False
        return True
    if code:
        raise OSError(code, os.strerror(code))
    return True


async def _connected(sock: socket.socket) -> None:
    """Wait until a connect that was started has ended; raises its ``OSError``."""
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(sock.fileno(), _wake, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock.fileno())
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def make_transparent(sock: socket.socket) -> None:
    """Let a socket have an address of another host. Raises ``OSError`` without NET_ADMIN."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def _bind_source(sock: socket.socket, family: int, source_ip: str) -> bool:
    """Bind to an address that may belong to another host; False when the system does not let us."""
    if (":" in source_ip) != (family == socket.AF_INET6):
        return False
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source_ip, 0))
    except OSError:
        pass
    else:
        return True
    try:
        make_transparent(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((source_ip, 0))
    except OSError:
        return False
    return True


def _connect_error(error: OSError, peer: str) -> ConnectError:
    if error.errno == errno.ECONNREFUSED:
        return ConnectError(
            "connect_refused",
            "connection refused",
            hint="nothing listens on this address and port",
            peer=peer,
        )
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return ConnectError(
            "connect_unreachable", "no route to the address", hint="check the node's routes", peer=peer
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ConnectError(
            "no_descriptors", "no file descriptors left", hint="raise the limit of open files", peer=peer
        )
    return ConnectError("connect_failed", f"connecting failed: {error.strerror or error}", peer=peer)
