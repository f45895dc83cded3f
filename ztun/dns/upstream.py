"""Asking the nameservers: bytes out, bytes back, over sockets that somebody else makes.

Each question has a socket of its own that is connected to one nameserver. So the kernel draws the source port and
drops what comes from elsewhere; the id and the question are compared here (RFC 5452).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import dns.rcode

from ztun.dns.limits import DnsLimits
from ztun.dns.messages import MAX_MESSAGE_BYTES, Query, belongs, read_header
from ztun.dns.nameservers import Address
from ztun.errors import DnsError
from ztun.mesh.model import join_host_port

SocketFactory: TypeAlias = Callable[[int, int], socket.socket]
"""(address family, type) -> a non-blocking socket of the pod's namespace, marked where that is needed."""

_ASK_THE_NEXT = frozenset({dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED})
"""Answers that speak of the server, not of the name; the C library goes on with the next one, too."""


class Upstream:
    """The nameservers as one client sees them."""

    def __init__(
        self,
        nameservers: Callable[[], Sequence[Address]],
        make_socket: SocketFactory,
        limits: DnsLimits,
    ) -> None:
        self._limits = limits
        self._nameservers = nameservers
        self._make_socket = make_socket
        self._asking: set[Address] = set()
        self._own: frozenset[Address] = frozenset()

    def sent(self, peer: Address) -> bool:
        """Whether a query that came from ``peer`` is one of ours, which the kernel has brought back."""
        return peer in self._asking

    def listening(self, addresses: Iterable[Address]) -> None:
        """These are ours; they are not asked."""
        self._own |= frozenset(addresses)

    async def ask(self, query: Query, *, udp: bool) -> bytes:
        """The answer of the first nameserver that has one, as it came.

        The next one is asked after a failure, or when an answer takes long; the earlier ones may still answer.
        Raises :class:`DnsError`: ``no_nameserver``, ``dns_timeout``, ``dns_unreachable``, ``dns_stray_answers``,
        ``no_descriptors``.
        """
        waiting = deque(one for one in self._nameservers() if one not in self._own)
        if not waiting:
            raise DnsError(
                "no_nameserver",
                "there is no nameserver to ask",
                hint="resolv.conf must name one that is not this proxy itself",
            )
        exchange = self._by_udp if udp else self._by_tcp
        asking: set[asyncio.Task[bytes]] = set()
        poor: bytes | None = None
        failure: DnsError | None = None
        try:
            async with asyncio.timeout(self._limits.exchange):
                while waiting or asking:
                    if waiting:
                        asking.add(asyncio.ensure_future(exchange(waiting.popleft(), query)))
                    done, asking = await asyncio.wait(
                        asking,
                        timeout=self._limits.patience if waiting else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for task in done:
                        error = task.exception()
                        if isinstance(error, DnsError):
                            failure = error
                        elif error is not None:
                            raise error
                        elif (header := read_header(task.result())) and header.rcode in _ASK_THE_NEXT:
                            poor = task.result()
                        else:
                            return task.result()
        except TimeoutError:
            failure = DnsError(
                "dns_timeout",
                f"no nameserver answered within {self._limits.exchange:g} s",
                hint="can the pod reach the nameservers of resolv.conf?",
            )
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if poor is not None:
            return poor
        assert failure is not None
        raise failure

    async def _by_udp(self, server: Address, query: Query) -> bytes:
        loop = asyncio.get_running_loop()
        with _Socket(self._make_socket, socket.SOCK_DGRAM, server, self._asking) as one:
            try:
                one.sock.connect(server)
                one.remember()
                one.sock.send(query.wire)
                for _ in range(self._limits.stray_answers):
                    wire = await loop.sock_recv(one.sock, MAX_MESSAGE_BYTES)
                    if belongs(query, wire):
                        return wire
            except OSError as error:
                raise _unreachable(error, server) from error
        raise DnsError(
            "dns_stray_answers", "too many answers to other questions", peer=join_host_port(*server)
        )

    async def _by_tcp(self, server: Address, query: Query) -> bytes:
        loop = asyncio.get_running_loop()
        with _Socket(self._make_socket, socket.SOCK_STREAM, server, self._asking) as one:
            try:
                await loop.sock_connect(one.sock, server)
                one.remember()
                await loop.sock_sendall(one.sock, len(query.wire).to_bytes(2, "big") + query.wire)
                for _ in range(self._limits.stray_answers):
                    size = int.from_bytes(await _read(loop, one.sock, 2), "big")
                    wire = await _read(loop, one.sock, size)
                    if belongs(query, wire):
                        return wire
            except OSError as error:
                raise _unreachable(error, server) from error
        raise DnsError(
            "dns_stray_answers", "too many answers to other questions", peer=join_host_port(*server)
        )


class _Socket:
    """A socket for one question; while it is open its address is among those that ask."""

    def __init__(
        self, make: SocketFactory, kind: socket.SocketKind, server: Address, asking: set[Address]
    ) -> None:
        self._asking = asking
        self._name: Address | None = None
        try:
            self.sock = make(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, kind)
        except OSError as error:
            raise _unreachable(error, server) from error

    def __enter__(self) -> _Socket:
        return self

    def remember(self) -> None:
        """Once it is connected."""
        ip, port = self.sock.getsockname()[:2]
        self._name = (ip, port)
        self._asking.add(self._name)

    def __exit__(self, *_: object) -> None:
        if self._name is not None:
            self._asking.discard(self._name)
        self.sock.close()


async def _read(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the nameserver closed the connection")
        data += piece
    return bytes(data)


def _unreachable(error: OSError, server: Address) -> DnsError:
    peer = join_host_port(*server)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return DnsError(
            "no_descriptors", "no file descriptors left", hint="raise the limit of open files", peer=peer
        )
    return DnsError(
        "dns_unreachable",
        f"nameserver {peer}: {error.strerror or error}",
        hint="can the pod reach the nameservers of resolv.conf?",
        peer=peer,
    )
