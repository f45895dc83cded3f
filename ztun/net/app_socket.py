"""The TCP connection of an application: a source and a sink of bytes, with back-pressure in both directions.

1. It reads only as much as its sink has room for, into a buffer that all connections share.
2. What is offered to it goes to the kernel at once; only what the kernel does not take is copied and queued.
3. Above ``HELD_BYTES`` of queued bytes the source is told to stop, until the queue is short again.
4. FIN and RST are kept apart: an orderly end travels as ``offer_end``, a reset as ``abort``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Protocol, cast

from ztun.hbone.stream import HEADROOM_BYTES
from ztun.hbone.wire import ErrorCode
from ztun.net.buffers import APP_READ_BYTES, LoopBuffers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.hbone.stream import Sink, Source, TunnelStream

HELD_BYTES = 256 * 1024
RELAXED_BYTES = 64 * 1024
CROWDED_READ_BYTES = 16 * 1024
"""Read size when another stream took the room that was promised; the sink has to hold that much."""
EARLY_BYTES = 16 * 1024
"""What may arrive before ``start``: uvloop reads once after ``connection_made``, whatever that did."""
_LINGER_RESET = struct.pack("ii", 1, 0)


class SocketOwner(Protocol):
    """Whoever answers for the connection."""

    def socket_closed(self, sock: AppSocket, error: Exception | None) -> None:
        """The connection is gone: both directions ended in order (None), or why not."""


class AppSocket(asyncio.BufferedProtocol):
    """One connection to or from an application. Nothing is read before ``start``."""

    __slots__ = (
        "_aborted",
        "_arrived",
        "_buffers",
        "_early",
        "_fd",
        "_in_place",
        "_owner",
        "_sink",
        "_source",
        "_transport",
        "_write_paused",
        "bytes_read",
        "bytes_written",
        "closed",
        "end_offered",
        "read_ended",
    )

    def __init__(self, buffers: LoopBuffers) -> None:
        self._buffers = buffers
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._owner: SocketOwner | None = None
        self._sink: Sink | None = None
        self._source: Source | None = None
        self._in_place: TunnelStream | None = None
        self._early = b""
        self._arrived: Callable[[], None] | None = None
        self._write_paused = False
        self._aborted = False
        self.bytes_read = 0
        self.bytes_written = 0
        self.read_ended = False
        self.end_offered = False
        self.closed = False

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below; only after the connection was made."""
        assert self._transport is not None
        return self._transport

    def own(self, owner: SocketOwner) -> None:
        """Say who is told of the end."""
        self._owner = owner

    def unread(self, data: bytes) -> None:
        """Take bytes that somebody else read from the connection, before ``start``; they come first."""
        self._early = data + self._early
        self.bytes_read += len(data)

    @property
    def early(self) -> bytes:
        """What was read before ``start``; at most ``EARLY_BYTES``, and the sink gets it first."""
        return self._early

    def read_early(self, arrived: Callable[[], None]) -> None:
        """Read some more before ``start``. ``arrived`` is called once: there are bytes, or the client has ended.

        A later call, and ``start``, take the place of an earlier one.
        """
        if self.read_ended or self.closed or self._aborted or len(self._early) >= EARLY_BYTES:
            arrived()
            return
        self._arrived = arrived
        self.transport.resume_reading()

    def give_up(self) -> asyncio.Transport:
        """Hand the connection to another protocol, before ``start``; what was read is in ``early``."""
        transport, self._transport = self.transport, None
        self._arrived = None
        return transport

    def start(self, sink: Sink, source: Source, *, in_place: TunnelStream | None = None) -> None:
        """Begin to read into ``sink``. ``in_place`` is the same sink when it can use the headroom."""
        self._sink, self._source, self._in_place = sink, source, in_place
        self._arrived = None
        more = True
        if self._early:
            early, self._early = self._early, b""
            more = sink.offer(memoryview(early))
        if self.read_ended:
            sink.offer_end()
        elif more and not self.closed and not self._aborted:
            self.transport.resume_reading()

    # -- from the loop ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and wait for ``start``."""
        transport = cast("asyncio.Transport", transport)  # uvloop does not subclass it
        self._transport = transport
        self._fd = transport.get_extra_info("socket").fileno()
        transport.set_write_buffer_limits(high=HELD_BYTES, low=RELAXED_BYTES)
        transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """As much of the shared buffer as the sink has room for."""
        if self._sink is None:
            # never empty: the loop takes that for an error, and may read once more than it was asked to
            return self._buffers.app_space[: max(EARLY_BYTES - len(self._early), 1)]
        room = self._sink.room()
        if room >= APP_READ_BYTES:
            return self._buffers.app_space
        return self._buffers.app_space[: room if room > 0 else CROWDED_READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Give away what was read."""
        self.bytes_read += nbytes
        frame = self._buffers.app[: HEADROOM_BYTES + nbytes]
        if self._in_place is not None:
            more = self._in_place.offer_in_place(frame)
        elif self._sink is not None:
            more = self._sink.offer(frame[HEADROOM_BYTES:])
        else:
            self._early += bytes(frame[HEADROOM_BYTES:])
            more = False
        if not more and not self.closed:
            self.transport.pause_reading()
        if self._arrived is not None:
            self._tell_arrived()

    def eof_received(self) -> bool:
        """FIN: nothing more to read; the other direction stays open until it ends too."""
        self.read_ended = True
        if self._sink is not None:
            self._sink.offer_end()
        if self._arrived is not None:
            self._tell_arrived()
        return not self.end_offered

    def pause_writing(self) -> None:
        """The application does not read."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The application reads again."""
        self._write_paused = False
        if self._source is not None:
            self._source.sink_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.closed = True
        if self._arrived is not None:
            self._tell_arrived()
        if self._owner is not None:
            if exc is None and not self._aborted and not (self.read_ended and self.end_offered):
                exc = ConnectionResetError("the connection ended before both sides were done")
            self._owner.socket_closed(self, exc)
        self._owner = self._sink = self._source = self._in_place = None  # cycles would wait for the collector

    # -- as a source -----------------------------------------------------------------------------------------

    def sink_drained(self) -> None:
        """Our sink has room again."""
        if not self.closed and not self.read_ended and self._transport is not None:
            self._transport.resume_reading()

    # -- as a sink -------------------------------------------------------------------------------------------

    def room(self) -> int:
        """What may be offered before the queue is long."""
        return 0 if self._write_paused or self.closed else HELD_BYTES

    def offer(self, data: memoryview) -> bool:
        """Hand bytes to the kernel, queue the rest. False while the queue is long."""
        size = len(data)
        self.bytes_written += size
        if self.closed or self._aborted:
            return True
        transport = self._transport
        assert transport is not None
        if not transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lose(error)
                return True
            if sent == size:
                return True
            data = data[sent:]
        transport.write(bytes(data))
        return not self._write_paused

    def offer_end(self) -> None:
        """Send FIN behind what is queued; close when the other direction has ended too."""
        if self.end_offered or self.closed or self._aborted:
            return
        self.end_offered = True
        transport = self._transport
        assert transport is not None
        if self.read_ended:
            transport.close()
        else:
            transport.write_eof()

    def abort(self, code: int) -> None:
        """End at once: with FIN for NO_ERROR, otherwise with RST, so that the application can tell the difference."""
        if self.closed or self._aborted:
            return
        self._aborted = True
        transport = self._transport
        if transport is None:
            return
        if code == ErrorCode.NO_ERROR:
            transport.close()
            return
        sock: socket.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # already disconnected
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        transport.abort()

    def _tell_arrived(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived()

    def _lose(self, error: OSError) -> None:
        """A direct write failed: end the connection and tell the owner why."""
        self._aborted = True
        self.transport.abort()
        if self._owner is not None and not self.closed:
            self.closed = True
            owner, self._owner = self._owner, None
            owner.socket_closed(self, error)


def reset(transport: asyncio.Transport) -> None:
    """End a connection with RST, so that the peer can tell it from an orderly end."""
    sock: socket.socket = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # already disconnected
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()
