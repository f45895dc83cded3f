"""Queries over TCP: a length before each message, several of them per connection (RFC 1035 section 4.2.2, RFC 7766)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from ztun.dns.limits import DnsLimits
from ztun.dns.messages import HEADER_BYTES, MAX_QUERY_BYTES
from ztun.dns.nameservers import Address
from ztun.dns.requests import Receive

_LENGTH_BYTES = 2


class TcpConnections:
    """The connections of one pod. ``overloaded`` is called for each that is refused because there are too many."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        receive: Receive,
        overloaded: Callable[[], None],
        limits: DnsLimits,
    ) -> None:
        self.open: set[TcpConnection] = set()
        self.limits = limits
        self._loop = loop
        self._receive = receive
        self._overloaded = overloaded
        self._closed = False

    def accept(self) -> TcpConnection:
        """The protocol of a new connection."""
        return TcpConnection(self._loop, self._receive, self)

    def admit(self, connection: TcpConnection) -> bool:
        """Whether there is room for one more, and the pod still there: the loop may have accepted it before its end."""
        if self._closed:
            return False
        if len(self.open) >= self.limits.connections:
            self._overloaded()
            return False
        self.open.add(connection)
        return True

    def close(self) -> None:
        """Cut all, and take no more."""
        self._closed = True
        for connection in list(self.open):
            connection.abort()


class TcpConnection(asyncio.BufferedProtocol):
    """One connection of a client."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Receive, all_of_pod: TcpConnections) -> None:
        self._loop = loop
        self._receive = receive
        self._all = all_of_pod
        self._limits = all_of_pod.limits
        self._transport: asyncio.Transport | None = None
        self._peer: Address = ("", 0)
        self._buffer = bytearray(_LENGTH_BYTES + MAX_QUERY_BYTES)
        self._filled = 0
        self._waiting = 0
        self._full = False
        self._ended = False
        self._paused = False
        self._active = loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit it, or close it at once."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop does not subclass it
        if not self._all.admit(self):
            self._transport.abort()
            return
        name = transport.get_extra_info("peername")
        self._peer = (name[0], name[1]) if name else self._peer
        self._timer = self._loop.call_later(self._limits.idle, self._look)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for the rest of one query; a query always fits."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what is complete."""
        self._filled += nbytes
        self._serve()

    def eof_received(self) -> bool:
        """The client asks no more; it still gets its answers."""
        self._ended = True
        return self._waiting > 0

    def pause_writing(self) -> None:
        """The client does not read its answers."""
        self._full = True
        self._pace()

    def resume_writing(self) -> None:
        """It does again."""
        self._full = False
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._transport = None
        self._all.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Cut it."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Hand over the whole queries that are there, as long as not too many wait."""
        while self._transport is not None and not self._full and self._waiting < self._limits.pipelined:
            if self._filled < _LENGTH_BYTES:
                break
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if not HEADER_BYTES <= size <= MAX_QUERY_BYTES:
                self.abort()
                return
            end = _LENGTH_BYTES + size
            if self._filled < end:
                break
            wire = bytes(self._buffer[_LENGTH_BYTES:end])
            self._buffer[: self._filled - end] = self._buffer[end : self._filled]
            self._filled -= end
            self._active = self._loop.time()
            self._waiting += 1
            self._receive(wire, self._peer, self._answer)
        self._pace()

    def _answer(self, wire: bytes) -> None:
        self._waiting -= 1
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if wire:
            self._active = self._loop.time()
            transport.write(len(wire).to_bytes(_LENGTH_BYTES, "big") + wire)
        if self._ended and not self._waiting:
            transport.close()
        elif self._paused:
            # not from here: the query may have come from the loop that hands them over
            self._loop.call_soon(self._serve)

    def _pace(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._ended:
            return
        busy = self._full or self._waiting >= self._limits.pipelined
        if busy and not self._paused:
            transport.pause_reading()
        elif self._paused and not busy:
            transport.resume_reading()
        self._paused = busy

    def _look(self) -> None:
        """Close it when nothing has happened for long; answers under way have a limit of their own."""
        left = self._active + self._limits.idle - self._loop.time()
        if self._transport is None:
            return
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._full:
            self._transport.abort()
        elif self._waiting:
            self._timer = self._loop.call_later(self._limits.idle, self._look)
        else:
            self._transport.close()
