"""Queries over UDP: a bound socket, read without a transport so that nothing piles up in one."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from ztun.dns.messages import MAX_QUERY_BYTES
from ztun.dns.nameservers import Address
from ztun.dns.requests import Receive

BATCH_DATAGRAMS = 16  # per turn of the loop, about 5 ms of work: connections have their turn in between
MAX_QUEUED_DATAGRAMS = 300  # more than a socket's buffer of 208 KiB holds: each takes 768 bytes or more
_DISCARD_PORT = 9


class UdpServer:
    """Serves one socket. ``receive`` is called with each datagram and a function that takes the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, receive: Receive) -> None:
        self._loop = loop
        self._sock = sock
        self._receive = receive
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def finish(self) -> None:
        """Read what is there, then take nothing more; answers can still be sent."""
        for _ in range(MAX_QUEUED_DATAGRAMS):
            if not self._read():
                break
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            # a connected socket gets datagrams of one peer only, the kernel gives the others to whoever else is bound
            with contextlib.suppress(OSError):
                self._sock.connect((self._sock.getsockname()[0], _DISCARD_PORT))

    def close(self) -> None:
        """Stop, and close the socket."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        for _ in range(BATCH_DATAGRAMS):
            if not self._read():
                return

    def _read(self) -> bool:
        """Take one datagram, if there is one."""
        if self._sock.fileno() < 0:
            return False
        try:
            # one byte more than a query may have, to tell a longer one
            wire, peer = self._sock.recvfrom(MAX_QUERY_BYTES + 1)
        except OSError:  # mostly because there is none left; else an ICMP error about an earlier answer
            return False
        self._receive(wire, peer[:2], _Answer(self._sock, peer))
        return True


class _Answer:
    """Sends an answer, or drops it like the network would when the socket takes no more."""

    __slots__ = ("_peer", "_sock")

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        self._sock = sock
        self._peer = peer

    def __call__(self, wire: bytes) -> None:
        if wire:
            with contextlib.suppress(OSError):
                self._sock.sendto(wire, self._peer)
