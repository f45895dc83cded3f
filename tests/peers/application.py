"""The application behind the tunnels, an own process: ``python -m tests.peers.application --listen IP:PORT``.

The first line of a connection says what the server does; what follows the line belongs to the stream.

    echo                send everything back; end of stream for end of stream
    sink                read to the end of stream, answer ``<count> <sha256>``, close
    take COUNT          read that many bytes unhashed, answer ``taken``, close when the client does
    source SEED COUNT   send that much of the pattern and end of stream, read to the end of stream
    send SEED COUNT     send that much of the pattern, close when the client does
    linger TOKEN        send ``bye`` and end of stream at once, read on, keep the outcome under TOKEN
    watch TOKEN         read, keep the outcome under TOKEN
    reset               answer ``now``, then end with RST when the next byte comes
    outcome TOKEN       wait for that outcome and answer ``eof|reset <count> <sha256>``

On a ``--greet`` address the server speaks first (``220 ready``) and then echoes; on a ``--farewell`` address
it says the same and ends its side at once.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
import sys
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvloop

from tests.peers.pattern import Tally, pattern
from tests.peers.process import raise_descriptor_limit

GREETING = b"220 ready\r\n"
READ_BYTES = 256 * 1024
LINE_BYTES = 256
HIGH_WATER_BYTES = 1024 * 1024
BACKLOG = 4096
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER with time 0: close sends RST

_buffer = memoryview(bytearray(READ_BYTES))


class Outcomes:
    """How watched connections ended, by token; one reader may wait for each."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[str]] = {}

    def of(self, token: str) -> asyncio.Future[str]:
        """The outcome of ``token``, now or later."""
        return self._futures.setdefault(token, asyncio.get_running_loop().create_future())

    def keep(self, token: str, outcome: str) -> None:
        """Record an outcome; the first one counts."""
        future = self.of(token)
        if not future.done():
            future.set_result(outcome)


class Connection(asyncio.BufferedProtocol):
    """One connection and the behaviour its first line chose."""

    def __init__(self, outcomes: Outcomes, first: str) -> None:
        self.outcomes = outcomes
        self.first = first
        self.behaviour = "echo" if first else ""
        self.line = b""
        self.token = ""
        self.tally = Tally()
        self.due = -1
        self.pieces: Iterator[memoryview] | None = None
        self.writable = True
        self.ended = False
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        if self.first:
            self.transport.write(GREETING)
        if self.first == "farewell":
            self.transport.write_eof()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = _buffer[:nbytes]
        if not self.behaviour:
            head, newline, rest = (self.line + bytes(data)).partition(b"\n")
            if not newline:
                self.line = head[:LINE_BYTES]
                return
            self._begin(head.decode().split())
            data = memoryview(rest)
        if len(data):
            self._take(data)

    def _begin(self, words: list[str]) -> None:
        self.behaviour = words[0] if words else "echo"
        self.tally.hashed = self.behaviour != "take"
        if self.behaviour == "take":
            self.due = int(words[1])
        elif self.behaviour in ("source", "send"):
            self.pieces = pattern(int(words[1]), int(words[2]))
            self.resume_writing()
        elif self.behaviour in ("linger", "watch"):
            self.token = words[1]
            if self.behaviour == "linger":
                self.transport.write(b"bye\n")
                self.transport.write_eof()
        elif self.behaviour == "reset":
            self.transport.write(b"now\n")
        elif self.behaviour == "outcome":
            self.outcomes.of(words[1]).add_done_callback(self._answer)

    def _answer(self, outcome: asyncio.Future[str]) -> None:
        if not outcome.cancelled():
            self.transport.write(outcome.result().encode() + b"\n")
            self.transport.close()

    def _take(self, data: memoryview) -> None:
        if self.behaviour == "echo":
            if self.first != "farewell":
                self.transport.write(bytes(data))
        elif self.behaviour == "reset":
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self.transport.abort()
        else:
            self.tally.add(data)
            if self.tally.count == self.due:
                self.transport.write(b"taken\n")

    def pause_writing(self) -> None:
        self.writable = False
        if self.behaviour == "echo":
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.writable = True
        if self.behaviour == "echo":
            self.transport.resume_reading()
        while self.pieces is not None and self.writable:
            piece = next(self.pieces, None)
            if piece is None:
                self.pieces = None
                if self.ended:
                    self.transport.close()
                elif self.behaviour == "source":
                    self.transport.write_eof()
            else:
                self.transport.write(piece)

    def eof_received(self) -> bool:
        if self.behaviour == "sink":
            self.transport.write(f"{self.tally}\n".encode())
        if self.token:
            self.outcomes.keep(self.token, f"eof {self.tally}")
        self.ended = True
        if self.behaviour == "outcome" or self.pieces is not None:
            return True
        self.transport.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pieces = None
        if self.token:
            self.outcomes.keep(self.token, f"{'reset' if exc else 'eof'} {self.tally}")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _serve(options: argparse.Namespace) -> None:
    loop, outcomes = asyncio.get_running_loop(), Outcomes()
    for first, addresses in (
        ("", options.listen),
        ("greet", options.greet),
        ("farewell", options.farewell),
    ):
        for host, port in addresses:
            await loop.create_server(partial(Connection, outcomes, first), host, port, backlog=BACKLOG)
    print("listening", flush=True)
    await loop.create_future()


def main(arguments: list[str]) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--listen", "--greet", "--farewell"):
        parser.add_argument(option, type=_address, action="append", default=[])
    options = parser.parse_args(arguments)
    raise_descriptor_limit()
    uvloop.run(_serve(options))


if __name__ == "__main__":
    main(sys.argv[1:])
