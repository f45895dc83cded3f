"""Received bytes into frames: payload goes straight to its stream, everything else to the connection.

1. Only an incomplete nine-byte header or an incomplete control frame is ever kept; payload is passed on as it comes.
2. The flow-control windows are charged for a DATA frame when its header is read, padding included (RFC 9113
   section 6.9.1).
3. A frame in the middle of a header block, other than its CONTINUATION, is an error of the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.hbone.guard import Abuse, GuardTripped
from ztun.hbone.wire import (
    CLIENT_PREFACE,
    CONTINUATION,
    DATA,
    FLAG_ACK,
    FLAG_END_HEADERS,
    FLAG_END_STREAM,
    FLAG_PADDED,
    FLAG_PRIORITY,
    FRAME_HEADER,
    HEADER_BYTES,
    HEADERS,
    SETTINGS,
    STREAM_ID_MASK,
    ErrorCode,
)

if TYPE_CHECKING:
    from ztun.hbone.connection import TunnelConnection
    from ztun.hbone.stream import TunnelStream

_PRIORITY_BYTES = 5  # stream dependency and weight, ignored as RFC 9113 section 5.3 allows
_KNOWN_TYPES = frozenset(range(CONTINUATION + 1))


class ProtocolViolation(Exception):
    """The peer broke HTTP/2 in a way that ends the connection; ``code`` goes into GOAWAY."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class FrameReader:
    """Splits the bytes of one connection. Holds at most one control frame (``control_frame_bytes``)."""

    __slots__ = (
        "_block",
        "_block_bytes",
        "_block_ends_stream",
        "_block_frames",
        "_block_stream",
        "_connection",
        "_control",
        "_control_left",
        "_end_stream",
        "_header",
        "_pad_length_due",
        "_padding",
        "_payload_left",
        "_preface_left",
        "_skip_left",
        "_stream",
    )

    def __init__(self, connection: TunnelConnection, *, server: bool) -> None:
        self._connection = connection
        self._preface_left = len(CLIENT_PREFACE) if server else 0
        self._header = bytearray()
        self._control = bytearray()
        self._control_left = 0
        self._skip_left = 0
        self._payload_left = 0
        self._padding = 0
        self._pad_length_due = False
        self._end_stream = False
        self._stream: TunnelStream | None = None
        self._block_stream = 0
        self._block_frames = 0
        self._block_bytes = 0
        self._block = bytearray()
        self._block_ends_stream = False

    def feed(self, data: memoryview) -> None:
        """Take received bytes. Raises :class:`ProtocolViolation` and :class:`GuardTripped`."""
        position = 0
        size = len(data)
        if self._preface_left:
            position = self._read_preface(data)
        connection = self._connection
        unpack = FRAME_HEADER.unpack_from
        while position < size and not connection.closed:
            if self._payload_left:
                position += self._read_payload(data, position, size)
                continue
            if self._skip_left:
                take = min(self._skip_left, size - position)
                self._skip_left -= take
                position += take
                continue
            if self._control_left:
                take = min(self._control_left, size - position)
                self._control += data[position : position + take]
                self._control_left -= take
                position += take
                if not self._control_left:
                    self._control_complete()
                continue
            if self._header or size - position < HEADER_BYTES:
                take = min(HEADER_BYTES - len(self._header), size - position)
                self._header += data[position : position + take]
                position += take
                if len(self._header) < HEADER_BYTES:
                    return
                high, low, kind, flags, stream_id = unpack(self._header)
                self._header.clear()
            else:
                high, low, kind, flags, stream_id = unpack(data, position)
                position += HEADER_BYTES
            length = high << 16 | low
            if kind == DATA and not self._block_stream:
                if not flags and 0 < length <= size - position:
                    # a whole frame of payload, as nearly all are, passed on with two calls less
                    stream = connection.streams.get(stream_id & STREAM_ID_MASK)
                    if stream is not None and stream.takes_payload(length):
                        stream.payload_received(data[position : position + length])
                        position += length
                        continue
                self._start_data(length, flags, stream_id & STREAM_ID_MASK)
            else:
                self._start_control(length, kind, flags, stream_id & STREAM_ID_MASK)

    def _read_preface(self, data: memoryview) -> int:
        done = len(CLIENT_PREFACE) - self._preface_left
        take = min(self._preface_left, len(data))
        if data[:take] != CLIENT_PREFACE[done : done + take]:
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, "the peer does not speak HTTP/2 (wrong preface)"
            )
        self._preface_left -= take
        if not self._preface_left:
            self._connection.control.preface_received()
        return take

    # -- DATA ------------------------------------------------------------------------------------------------

    def _start_data(self, length: int, flags: int, stream_id: int) -> None:
        connection = self._connection
        if length > connection.settings.max_frame_size:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"a DATA frame of {length} bytes")
        connection.recv_window -= length
        if connection.recv_window < 0:
            raise ProtocolViolation(
                ErrorCode.FLOW_CONTROL_ERROR, "more payload than the connection window allows"
            )
        stream = connection.streams.get(stream_id)
        if stream is None:
            connection.frame_without_stream(stream_id, length)
        elif stream.remote_ended:
            connection.violate_stream(stream, ErrorCode.STREAM_CLOSED, "DATA behind END_STREAM")
            stream = None
        elif connection.client and not stream.answered:
            connection.violate_stream(stream, ErrorCode.PROTOCOL_ERROR, "DATA before the response")
            stream = None
        else:
            stream.recv_window -= length
            if stream.recv_window < 0:
                connection.violate_stream(
                    stream, ErrorCode.FLOW_CONTROL_ERROR, "more payload than the window allows"
                )
                stream = None
        end_stream = bool(flags & FLAG_END_STREAM)
        if flags & FLAG_PADDED:
            if length == 0:
                raise ProtocolViolation(
                    ErrorCode.FRAME_SIZE_ERROR, "a padded DATA frame without a pad length"
                )
            self._pad_length_due = True
        if length == 0:
            if stream is not None and end_stream:
                stream.end_received()
            elif not end_stream:
                connection.count_empty_data()
            return
        self._stream = stream
        self._end_stream = end_stream
        self._payload_left = length

    def _read_payload(self, data: memoryview, position: int, size: int) -> int:
        start = position
        connection = self._connection
        if self._pad_length_due:
            self._pad_length_due = False
            self._padding = data[position]
            position += 1
            self._payload_left -= 1
            if self._padding > self._payload_left:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "padding longer than its DATA frame")
            if self._padding == self._payload_left and not self._end_stream:
                connection.count_empty_data()
            self._padding_consumed(1)
        take = min(self._payload_left, size - position)
        payload = min(take, self._payload_left - self._padding)
        stream = self._stream
        if stream is not None and stream.closed:
            stream = self._stream = None
        if payload > 0:
            if stream is not None:
                stream.payload_received(data[position : position + payload])
            else:
                connection.credit_connection(payload)
        if take > payload:
            self._padding_consumed(take - payload)
            self._padding -= take - payload
        self._payload_left -= take
        if not self._payload_left:
            self._stream = None
            if self._end_stream and stream is not None and not stream.closed:
                stream.end_received()
        return position + take - start

    def _padding_consumed(self, size: int) -> None:
        connection = self._connection
        connection.credit_connection(size)
        if self._stream is not None and not self._stream.closed:
            self._stream.owed += size

    # -- everything else -------------------------------------------------------------------------------------

    def _start_control(self, length: int, kind: int, flags: int, stream_id: int) -> None:
        connection = self._connection
        if not connection.ready and (kind != SETTINGS or flags & FLAG_ACK):
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS (RFC 9113 section 3.4)"
            )
        if self._block_stream and (kind != CONTINUATION or stream_id != self._block_stream):
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "a frame in the middle of a header block")
        if kind == CONTINUATION and not self._block_stream:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        if kind not in _KNOWN_TYPES:
            # RFC 9113 section 4.1: unknown types are ignored; skipped without being kept
            connection.count(Abuse.GLITCH)
            if length > connection.settings.max_frame_size:
                raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            self._skip_left = length
            return
        if length > connection.guard.limits.control_frame_bytes:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"a control frame of {length} bytes")
        if kind in (HEADERS, CONTINUATION):
            self._block_frames += 1
            self._block_bytes += length
            if self._block_bytes > connection.guard.limits.header_block_bytes:
                raise GuardTripped(
                    Abuse.HEADER_LIST, f"a header block of {self._block_bytes} bytes before decoding"
                )
            if self._block_frames > connection.guard.limits.continuation_frames:
                raise GuardTripped(
                    Abuse.CONTINUATION, f"a header block of more than {self._block_frames - 1} frames"
                )
            if flags & FLAG_END_HEADERS:
                self._block_stream = self._block_frames = self._block_bytes = 0
            else:
                self._block_stream = stream_id
        self._control += FRAME_HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id)
        self._control_left = length
        if not length:
            self._control_complete()

    def _control_complete(self) -> None:
        frame, self._control = self._control, bytearray()
        _, _, kind, flags, stream_id = FRAME_HEADER.unpack_from(frame)
        if kind not in (HEADERS, CONTINUATION):
            self._connection.control.received(kind, flags, stream_id, frame)
            return
        if kind == HEADERS:
            self._block_ends_stream = bool(flags & FLAG_END_STREAM)
            self._block += _fragment(frame, flags)
        else:
            self._block += frame[HEADER_BYTES:]
        if flags & FLAG_END_HEADERS:
            block, self._block = self._block, bytearray()
            self._connection.exchange.received(stream_id, block, end_stream=self._block_ends_stream)


def _fragment(frame: bytearray, flags: int) -> bytearray:
    """The part of a HEADERS frame that belongs to its block (RFC 9113 section 6.2)."""
    start, end = HEADER_BYTES, len(frame)
    if flags & FLAG_PADDED:
        if start == end:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a padded HEADERS frame without a pad length")
        end -= frame[start]
        start += 1
    if flags & FLAG_PRIORITY:
        start += _PRIORITY_BYTES
    if start > end:
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "padding or priority longer than its HEADERS frame")
    return frame[start:end]
