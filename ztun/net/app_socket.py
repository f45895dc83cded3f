"""The TCP connection of an application: a source and a sink of bytes, with back-pressure in both directions.

1. It reads only as much as its sink has room for, into a buffer that all connections share.
2. What is offered to it goes to the kernel at once; only what the kernel does not take is copied and queued.
3. Above ``HELD_BYTES`` of queued bytes the source is told to stop, until the queue is short again.
4. FIN and RST are kept apart: an orderly end travels as ``offer_end``, a reset as ``abort``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ztun.hbone.stream import HEADROOM_BYTES
from ztun.hbone.wire import ErrorCode
from ztun.net.buffers import APP_READ_BYTES
from ztun.net.stream_socket import StreamSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ztun.hbone.stream import Sink, Source, TunnelStream
    from ztun.net.poller import Poller

HELD_BYTES = 256 * 1024
RELAXED_BYTES = 64 * 1024
CROWDED_READ_BYTES = 16 * 1024
"""Read size when another stream took the room that was promised; the sink has to hold that much."""
EARLY_BYTES = 16 * 1024  # what may be read before ``start``, to look at it


class SocketOwner(Protocol):
    """Whoever answers for the connection."""

    def socket_closed(self, sock: AppSocket, error: Exception | None) -> None:
        """The connection is gone: both directions ended in order (None), or why not. Not called after ``abort``."""


class AppSocket(StreamSocket):
    """One connection to or from an application. Nothing is read before ``start``."""

    __slots__ = (
        "_arrived",
        "_buffers",
        "_early",
        "_in_place",
        "_owner",
        "_sink",
        "_source",
        "bytes_read",
        "bytes_written",
        "end_offered",
        "read_ended",
    )

    def __init__(self, poller: Poller, sock: socket.SocketType) -> None:
        super().__init__(poller, high=HELD_BYTES, low=RELAXED_BYTES)
        self._buffers = poller.buffers
        self._owner: SocketOwner | None = None
        self._sink: Sink | None = None
        self._source: Source | None = None
        self._in_place: TunnelStream | None = None
        self._early = b""
        self._arrived: Callable[[], None] | None = None
        self.bytes_read = 0
        self.bytes_written = 0
        self.read_ended = False
        self.end_offered = False
        self.connected(sock)

    def own(self, owner: SocketOwner) -> None:
        """Say who is told of the end."""
        self._owner = owner

    @property
    def early(self) -> bytes:
        """What was read before ``start``; at most ``EARLY_BYTES``, and the sink gets it first."""
        return self._early

    def take_early(self) -> bytes:
        """What was read before ``start``; the sink will not get it."""
        early, self._early = self._early, b""
        self.bytes_read -= len(early)
        return early

    def unread(self, data: bytes) -> None:
        """Take bytes that somebody else read from the connection, before ``start``; they come first."""
        self._early = data + self._early
        self.bytes_read += len(data)

    def read_early(self, arrived: Callable[[], None]) -> None:
        """Read some more before ``start``. ``arrived`` is called once: there are bytes, or the client has ended.

        A later call, and ``start``, take the place of an earlier one.
        """
        if self.read_ended or self.closed or len(self._early) >= EARLY_BYTES:
            arrived()
            return
        self._arrived = arrived
        self._resume()

    def give_up(self) -> socket.SocketType:
        """Hand the connection to somebody else, before ``start``; what was read is in ``early``."""
        self._arrived = None
        return self._hand_over()

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
        elif more:
            self._resume()

    # -- from the poller -------------------------------------------------------------------------------------

    def _space(self) -> memoryview:
        """As much of the shared buffer as the sink has room for."""
        sink = self._sink
        if sink is None:
            return self._buffers.app_space[: EARLY_BYTES - len(self._early)]
        room = sink.room()
        if room >= APP_READ_BYTES:
            return self._buffers.app_space
        return self._buffers.app_space[: room if room > 0 else CROWDED_READ_BYTES]

    def _received(self, size: int) -> None:
        """Give away what was read."""
        self.bytes_read += size
        frame = self._buffers.app[: HEADROOM_BYTES + size]
        if self._in_place is not None:
            more = self._in_place.offer_in_place(frame)
        elif self._sink is not None:
            more = self._sink.offer(frame[HEADROOM_BYTES:])
        else:
            self._early += bytes(frame[HEADROOM_BYTES:])
            more = False
        if not more:
            self._pause()
        if self._arrived is not None:
            self._tell_arrived()

    def _ended(self) -> None:
        """FIN: nothing more to read; the other direction stays open until it ends too."""
        self.read_ended = True
        if self._sink is not None:
            self._sink.offer_end()
        if self._arrived is not None:
            self._tell_arrived()
        if self.end_offered:
            self._finish()

    def _relaxed(self) -> None:
        """The application reads again."""
        if self._source is not None:
            self._source.sink_drained()

    def _gone(self, error: Exception | None) -> None:
        """The socket is gone."""
        owner = self._owner
        self._owner = self._sink = self._source = self._in_place = None  # cycles would wait for the collector
        if self._arrived is not None:
            self._tell_arrived()
        if owner is not None:
            owner.socket_closed(self, error)

    # -- as a source -----------------------------------------------------------------------------------------

    def sink_drained(self) -> None:
        """Our sink has room again."""
        self._resume()

    # -- as a sink -------------------------------------------------------------------------------------------

    def room(self) -> int:
        """What may be offered before the queue is long."""
        return 0 if self.congested or self.closed else HELD_BYTES

    def offer(self, data: memoryview) -> bool:
        """Hand bytes to the kernel, queue the rest. False while the queue is long."""
        self.bytes_written += len(data)
        if self.closed or self._finishing:
            return True
        self._write(data)
        return not self.congested

    def offer_end(self) -> None:
        """Send FIN behind what is queued; close when the other direction has ended too."""
        if self.end_offered or self.closed or self._finishing:
            return
        self.end_offered = True
        if self.read_ended:
            self._finish()
        else:
            self._write_end()

    def abort(self, code: int) -> None:
        """End at once: with FIN for NO_ERROR, otherwise with RST, so that the application can tell the difference."""
        self._owner = None
        if code == ErrorCode.NO_ERROR:
            self._finish()
        else:
            self._reset()

    # -- inside ----------------------------------------------------------------------------------------------

    def _tell_arrived(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived()
