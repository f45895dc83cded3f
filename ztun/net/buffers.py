"""The read and write buffers that all connections of one event loop share.

Whoever is told of an event handles it at once: whatever is in a buffer has left it when the call returns, so one of
each is enough for any number of connections. An idle connection then costs no buffer at all.
"""

from __future__ import annotations

from OpenSSL._util import ffi

from ztun.hbone.stream import HEADROOM_BYTES

KIB = 1024
APP_READ_BYTES = 256 * KIB  # one recv of this size per tick fills 16 TLS records
WIRE_READ_BYTES = 256 * KIB
PLAINTEXT_BYTES = 256 * KIB
WIRE_WRITE_BYTES = 512 * KIB


class Buffer:
    """Memory with a view for Python and a pointer for OpenSSL."""

    __slots__ = ("memory", "pointer", "view")

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)
        self.view = memoryview(self.memory)
        self.pointer = ffi.from_buffer("char[]", self.memory)


class LoopBuffers:
    """The buffers of one event loop.

    ``app`` keeps ``HEADROOM_BYTES`` free in front, where the frame header of what was read is put.
    """

    __slots__ = ("app", "app_space", "plaintext", "wire_in", "wire_out")

    def __init__(self) -> None:
        self.app = memoryview(bytearray(HEADROOM_BYTES + APP_READ_BYTES))
        self.app_space = self.app[HEADROOM_BYTES:]
        self.wire_in = Buffer(WIRE_READ_BYTES)
        self.plaintext = Buffer(PLAINTEXT_BYTES)
        self.wire_out = Buffer(WIRE_WRITE_BYTES)
