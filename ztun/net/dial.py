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
from ztun.net.namespaces import NetworkNamespace, make_tcp_socket

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

    def apply(self, sock: socket.SocketType) -> None:
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


class Dial:
    """A connection that is being made to ``address`` (ip, port), from ``source_ip`` where the system allows that.

    ``namespace`` is where the socket is made, this process's own when there is none. ``connected`` says whether it is
    made already, as it mostly is to an address on this machine; otherwise ``wait`` for it, or ``close`` it.

    Raises :class:`ConnectError` with a code (``connect_refused``, ``connect_unreachable``, ``no_descriptors``,
    ``connect_failed``).
    """

    __slots__ = ("_address", "connected", "sock", "source_kept")

    def __init__(
        self,
        address: tuple[str, int],
        options: SocketOptions,
        source_ip: str | None = None,
        namespace: NetworkNamespace | None = None,
    ) -> None:
        ip, _ = self._address = address
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        try:
            self.sock = make_tcp_socket(family, namespace)
        except OSError as error:
            raise self._failure(error) from error
        try:
            options.apply(self.sock)
            self.source_kept = (
                source_ip is None or source_ip == ip or _bind_source(self.sock, family, source_ip)
            )
            self.connected = _connect_now(self.sock, address)
        except OSError as error:
            self.close()
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up."""
        self.sock.close()

    async def wait(self, timeout: float) -> None:
        """Wait until it is connected, at most so many seconds.

        Raises :class:`ConnectError` as the constructor does, ``connect_timeout``, and
        :class:`NetworkPolicySuspected` when an HBONE port does not answer at all; it is closed then.
        """
        try:
            async with asyncio.timeout(timeout):
                await _connected(self.sock)
        except TimeoutError:
            self.close()
            raise self._late(timeout) from None
        except OSError as error:
            self.close()
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise
        self.connected = True

    def _late(self, timeout: float) -> ConnectError:
        peer = join_host_port(*self._address)
        if self._address[1] == HBONE_PORT:
            return NetworkPolicySuspected(
                "connect_timeout",
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
                hint="allow TCP 15008 between the nodes and to the pod",
                peer=peer,
            )
        return ConnectError(
            "connect_timeout",
            f"connection timed out after {timeout:g} s",
            hint="is the address routable?",
            peer=peer,
        )

    def _failure(self, error: OSError) -> ConnectError:
        return _connect_error(error, join_host_port(*self._address))


async def connect(
    address: tuple[str, int],
    *,
    options: SocketOptions,
    timeout: float,
    source_ip: str | None = None,
    namespace: NetworkNamespace | None = None,
) -> Dial:
    """Make a connection within ``timeout`` seconds; see :class:`Dial` for the rest and for what is raised."""
    dial = Dial(address, options, source_ip, namespace)
    if not dial.connected:
        await dial.wait(timeout)
    return dial


def _connect_now(sock: socket.SocketType, address: tuple[str, int]) -> bool:
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


async def _connected(sock: socket.SocketType) -> None:
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


def make_transparent(sock: socket.SocketType) -> None:
    """Let a socket have an address of another host. Raises ``OSError`` without NET_ADMIN."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def _bind_source(sock: socket.SocketType, family: int, source_ip: str) -> bool:
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
