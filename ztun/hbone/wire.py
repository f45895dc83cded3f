"""HTTP/2 frames as far as the fast path writes or reads them itself (RFC 9113 sections 4.1 and 6)."""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER_BYTES = 9
CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_HEADER = struct.Struct(">BHBBL")
"""High and low part of the 24-bit length, type, flags, stream id (top bit reserved)."""
_CREDIT = struct.Struct(">BHBBLL")
_RESET = struct.Struct(">BHBBLL")
_GOAWAY = struct.Struct(">BHBBLLL")

STREAM_ID_MASK = 0x7FFF_FFFF
MAX_STREAM_ID = 0x7FFF_FFFF

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

FLAG_END_STREAM = 0x1
FLAG_ACK = 0x1
FLAG_END_HEADERS = 0x4
FLAG_PADDED = 0x8
FLAG_PRIORITY = 0x20


class ErrorCode(IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def error_name(code: int) -> str:
    """The RFC's name of an error code, or its number when the RFC has none."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"0x{code:x}"


def data_header(stream_id: int, length: int, *, end_stream: bool = False) -> bytes:
    """The nine bytes in front of ``length`` bytes of payload."""
    return FRAME_HEADER.pack(
        length >> 16, length & 0xFFFF, DATA, FLAG_END_STREAM if end_stream else 0, stream_id
    )


def headers_frame(stream_id: int, block: bytes, *, end_stream: bool) -> bytes:
    """A HEADERS frame with a whole block, which must fit into a frame of 16,384 bytes (any peer takes that)."""
    flags = FLAG_END_HEADERS | FLAG_END_STREAM if end_stream else FLAG_END_HEADERS
    return FRAME_HEADER.pack(len(block) >> 16, len(block) & 0xFFFF, HEADERS, flags, stream_id) + block


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; ``stream_id`` 0 is the connection."""
    return _CREDIT.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _RESET.pack(0, 4, RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY frame; ``debug`` is text for the peer's log."""
    return _GOAWAY.pack(0, 8 + len(debug), GOAWAY, 0, 0, last_stream_id, code) + debug
