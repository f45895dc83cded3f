"""One tunnelled connection: a place to put bytes into and a source of bytes, with credit in both directions.

A *sink* takes bytes (``offer``, ``offer_end``, ``abort``); a *source* feeds one sink and stops when the sink says so,
until ``sink_drained``. A tunnel stream is both, as is the socket of an application, so any two can be joined.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from ztun.hbone.wire import FRAME_HEADER, HEADER_BYTES, ErrorCode, data_header

if TYPE_CHECKING:
    from ztun.hbone.connection import TunnelConnection
    from ztun.hbone.headers import Headers

HEADROOM_BYTES = HEADER_BYTES
"""Bytes that a source leaves free in front of a payload, so that the frame header needs no second copy."""
WRITE_THROUGH_BYTES = 16 * 1024
"""Frames this large go to the transport at once instead of being copied and joined with others at the end of the
tick: from here on the copy costs more than the extra TLS record."""


class Sink(Protocol):
    """Something bytes can be put into."""

    def room(self) -> int:
        """How many bytes ``offer`` takes before it has to hold some."""

    def offer(self, data: memoryview) -> bool:
        """Take all of ``data`` (the memory is only lent). False: stop until the source's ``sink_drained``."""

    def offer_end(self) -> None:
        """No more bytes will come; what was offered is still delivered."""

    def abort(self, code: int) -> None:
        """Give up in both directions, telling the far end with ``code`` (RFC 9113 section 7)."""


class Source(Protocol):
    """Something that feeds a sink."""

    def sink_drained(self) -> None:
        """The sink has room again, or has delivered the last of what it was given."""


class StreamOwner(Protocol):
    """Whoever answers for a stream: told of what is not payload."""

    def stream_answered(self, stream: TunnelStream, headers: Headers) -> None:
        """The final response to our request (client side only)."""

    def stream_closed(self, stream: TunnelStream) -> None:
        """Both directions ended in order, and everything was sent."""

    def stream_reset(self, stream: TunnelStream, code: int, reason: str) -> None:
        """The stream is gone: reset by the peer, by a violation of its, or with the whole connection."""


class TunnelStream:
    """One CONNECT stream, after its request was accepted. Made by :class:`TunnelConnection` only.

    Everything it does happens inside a call of its connection or of its user; it never blocks and knows no time.
    """

    __slots__ = (
        "answered",
        "asked_in",
        "backlog",
        "backlog_bytes",
        "bytes_received",
        "bytes_sent",
        "closed",
        "concluding",
        "connection",
        "early",
        "early_end",
        "end_offered",
        "held",
        "held_since",
        "id",
        "local_ended",
        "loss",
        "owed",
        "owner",
        "recv_window",
        "remote_ended",
        "send_window",
        "sink",
        "source",
        "stalled_since",
    )

    def __init__(self, connection: TunnelConnection, stream_id: int, owner: StreamOwner) -> None:
        self.connection = connection
        self.id = stream_id
        self.owner = owner
        self.sink: Sink | None = None
        self.source: Source | None = None
        self.send_window = connection.peer_stream_window
        self.recv_window = connection.settings.stream_window
        self.owed = 0
        self.held = 0
        self.held_since = 0.0
        self.backlog: deque[bytes] = deque()
        self.backlog_bytes = 0
        self.early: deque[bytes] = deque()
        self.early_end = False
        self.answered = False
        self.asked_in = 0
        self.end_offered = False
        self.local_ended = False
        self.remote_ended = False
        self.closed = False
        self.concluding = False
        self.loss: tuple[int, str] | None = None
        self.stalled_since = 0.0
        self.bytes_sent = 0
        self.bytes_received = 0

    # -- joining ---------------------------------------------------------------------------------------------

    def attach(self, sink: Sink, source: Source) -> None:
        """Give the stream its other side; payload that came before is delivered now."""
        self.sink, self.source = sink, source
        early, self.early = self.early, deque()
        took_all = True
        for chunk in early:
            took_all = sink.offer(memoryview(chunk))
        if took_all and early:
            self.sink_drained()
        if self.early_end:
            self.early_end = False
            sink.offer_end()

    # -- receiving: the stream as a source -------------------------------------------------------------------

    def takes_payload(self, size: int) -> bool:
        """Charge both windows for a frame of payload that may simply be passed on; False, and no charge, if it may not.

        A frame that is refused here is either wrong or too early; the reader finds out which.
        """
        connection = self.connection
        if (
            self.sink is None
            or self.remote_ended
            or size > self.recv_window
            or size > connection.recv_window
            or size > connection.settings.max_frame_size
        ):
            return False
        self.recv_window -= size
        connection.recv_window -= size
        return True

    def payload_received(self, data: memoryview) -> None:
        """Pass payload on; its credit follows its delivery."""
        size = len(data)
        connection = self.connection
        self.bytes_received += size
        sink = self.sink
        if sink is not None:
            if sink.offer(data):
                connection.credit_connection(size)
                self.owed += size
                if self.owed >= connection.stream_credit_threshold:
                    connection.credit_stream(self)
                return
        else:
            self.early.append(bytes(data))
        connection.hold(self, size)

    def end_received(self) -> None:
        """The peer sent its last byte."""
        self.remote_ended = True
        if self.sink is not None:
            self.sink.offer_end()
        else:
            self.early_end = True
        self._close_if_done()

    def sink_drained(self) -> None:
        """What was held has been delivered: return its credit."""
        held = self.held
        if held:
            self.held = 0
            self.connection.release_held(held)
            if not self.closed and not self.remote_ended:
                self.owed += held
                if self.owed >= self.connection.stream_credit_threshold:
                    self.connection.credit_stream(self)

    # -- sending: the stream as a sink -----------------------------------------------------------------------

    def room(self) -> int:
        """Bytes that both windows allow now, 0 while the transport is congested or bytes are waiting."""
        connection = self.connection
        if self.backlog or connection.congested or self.closed:
            return 0
        # no min() and max(): they would be two calls for each read
        window, shared = self.send_window, connection.send_window
        if shared < window:
            window = shared
        return window if window > 0 else 0

    def offer_in_place(self, frame: memoryview) -> bool:
        """Like :meth:`offer` for a payload that starts at ``HEADROOM_BYTES``; the bytes before it are overwritten."""
        size = len(frame) - HEADROOM_BYTES
        connection = self.connection
        if (
            size > connection.peer_max_frame
            or size > self.send_window
            or size > connection.send_window
            or self.backlog
            or self.closed
        ):
            return self.offer(frame[HEADROOM_BYTES:])
        FRAME_HEADER.pack_into(frame, 0, size >> 16, size & 0xFFFF, 0, 0, self.id)
        self.send_window -= size
        connection.send_window -= size
        connection.credit_due += size
        connection.stream_credit_due += size
        self.bytes_sent += size
        if size >= WRITE_THROUGH_BYTES:
            connection.output.write_through(frame)
        else:
            connection.output.append(bytes(frame))
        if self.send_window > 0 and connection.send_window > 0 and not connection.congested:
            return True
        connection.wait_for_room(self)
        return False

    def offer(self, data: memoryview) -> bool:
        """Send what the windows allow and keep the rest; False when the source should stop for now."""
        if self.closed or self.local_ended:
            return True  # nobody will read it; the reset that closed the stream told both sides
        if not self.backlog:
            data = data[self._send(data) :]
        if len(data):
            self.backlog.append(bytes(data))
            self.backlog_bytes += len(data)
        if self.room() > 0:
            return True
        self.connection.wait_for_room(self)
        return False

    def offer_end(self) -> None:
        """Send END_STREAM behind everything offered so far."""
        if self.closed or self.end_offered:
            return
        self.end_offered = True
        if not self.backlog:
            self._send_end()

    def conclude(self) -> bool:
        """Deliver what was offered, end, and read no more (RFC 9113 section 8.1).

        False when bytes have to wait for the peer; the owner then hears ``stream_closed`` or ``stream_reset``.
        """
        self.offer_end()
        if self.backlog:
            self.concluding = True
            return False
        self.abort(ErrorCode.NO_ERROR)
        return True

    def abort(self, code: int) -> None:
        """Send RST_STREAM and forget the stream; the owner is not called back."""
        if not self.closed:
            self.connection.reset_stream(self, code)

    def try_resume(self) -> None:
        """Room may have come: send what waits, then let the source go on."""
        connection = self.connection
        while self.backlog and min(self.send_window, connection.send_window) > 0:
            chunk = self.backlog[0]
            sent = self._send(memoryview(chunk))
            self.backlog_bytes -= sent
            if sent == len(chunk):
                self.backlog.popleft()
            else:
                self.backlog[0] = chunk[sent:]
        if self.backlog:
            return
        if self.end_offered:
            if self.source is not None:
                self.source.sink_drained()
            self._send_end()
            return
        if self.room() > 0:
            connection.waiting.pop(self, None)
            if self.source is not None:
                self.source.sink_drained()

    # -- inside ----------------------------------------------------------------------------------------------

    def _send(self, data: memoryview) -> int:
        connection = self.connection
        size = min(len(data), self.send_window, connection.send_window)
        if size <= 0:
            return 0
        limit = connection.peer_max_frame
        for start in range(0, size, limit):
            chunk = data[start : min(start + limit, size)]
            connection.output.append(data_header(self.id, len(chunk)) + bytes(chunk))
        self.send_window -= size
        connection.send_window -= size
        connection.credit_due += size
        connection.stream_credit_due += size
        self.bytes_sent += size
        return size

    def _send_end(self) -> None:
        self.local_ended = True
        self.connection.waiting.pop(self, None)
        self.connection.output.append(data_header(self.id, 0, end_stream=True))
        self._close_if_done()
        if self.concluding and not self.closed:
            self.connection.reset_stream(self, ErrorCode.NO_ERROR)
            self.owner.stream_closed(self)

    def _close_if_done(self) -> None:
        if self.local_ended and self.remote_ended and not self.closed:
            self.connection.close_stream(self)
            self.owner.stream_closed(self)

    def discard(self) -> None:
        """Drop what waits to be sent (the stream is closed). What came is still there for ``attach``."""
        self.closed = True
        self.backlog.clear()
        self.backlog_bytes = 0
        self.connection.waiting.pop(self, None)

    def release(self) -> None:
        """Nobody will deliver what is still held; called by whoever joined the stream, at the end."""
        held, self.held = self.held, 0
        self.connection.release_held(held)

    def part(self) -> None:
        """Forget the other side, after the stream was closed."""
        self.sink = self.source = None
        self.owner = NOBODY

    def lost(self, code: ErrorCode | int, reason: str) -> None:
        """The stream ended before both directions did: tell the owner."""
        self.discard()
        self.loss = (code, reason)
        self.release()
        self.owner.stream_reset(self, code, reason)


class _Nobody:
    """Owner of a stream of which nobody has taken charge yet, or nobody is left in charge."""

    def stream_answered(self, stream: TunnelStream, headers: Headers) -> None:
        """Never called: it is the server side, or the connection is over."""

    def stream_closed(self, stream: TunnelStream) -> None:
        """Kept in the stream as ``closed``."""

    def stream_reset(self, stream: TunnelStream, code: int, reason: str) -> None:
        """Kept in the stream as ``closed``, and in ``loss``."""


NOBODY = _Nobody()
