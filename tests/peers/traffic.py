"""Client side of the application: byte-exact bulk, half-close, RST and many connections, blocking sockets.

Every socket has a timeout, so a stuck proxy fails a test instead of hanging it.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.peers.pattern import Tally, pattern
from tests.peers.process import Process

Address = tuple[str, int]
T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
SOCKET_SECONDS = 60.0  # for one send or receive; the time of a whole test is pytest-timeout's
READ_BYTES = 256 * 1024
_ABORT = struct.pack("ii", 1, 0)
_tokens = itertools.count()


class ApplicationProcess(Process):
    """The process of ``application.py`` on the given addresses."""

    def __init__(
        self,
        listen: Sequence[Address],
        log: Path,
        *,
        greet: Sequence[Address] = (),
        farewell: Sequence[Address] = (),
    ) -> None:
        self.listen = list(listen)
        argv = [sys.executable, "-m", "tests.peers.application"]
        for option, addresses in (("--listen", listen), ("--greet", greet), ("--farewell", farewell)):
            for host, port in addresses:
                argv += [option, f"{host}:{port}"]
        super().__init__(
            "application",
            argv,
            log,
            ready=lambda: "listening" in self.log_tail(),
            environment={"PYTHONPATH": str(ROOT)},
        )

    def outcome(self, token: str) -> list[str]:
        """How the connection of ``linger`` or ``watch`` with this token ended; asked past the proxies."""
        with dial(self.listen[0]) as connection:
            connection.sendall(f"outcome {token}\n".encode())
            return read_all(connection).decode().split()


def new_token() -> str:
    """A name for one watched connection, unique in this process."""
    return f"{os.getpid()}-{next(_tokens)}"


def dial(
    address: Address, *, source: Address | None = None, seconds: float = SOCKET_SECONDS
) -> socket.socket:
    """A connected socket with TCP_NODELAY and a timeout."""
    connection = socket.create_connection(address, timeout=seconds, source_address=source)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """``count`` bytes; raises ``EOFError`` when the stream ends before."""
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError(f"end of stream after {len(data)} of {count} bytes")
        data += piece
    return bytes(data)


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of stream; for short answers."""
    data = bytearray()
    while piece := connection.recv(READ_BYTES):
        data += piece
    return bytes(data)


def upload(address: Address, seed: int, count: int) -> str:
    """Send the pattern and half-close; returns what the application saw as ``<count> <sha256>``."""
    with dial(address) as connection:
        connection.sendall(b"sink\n")
        for piece in pattern(seed, count):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection).decode().strip()


def download(address: Address, seed: int, count: int) -> str:
    """Receive the pattern, then half-close; returns what arrived until the server did so as ``<count> <sha256>``."""
    tally = Tally()
    with dial(address) as connection:
        connection.sendall(f"send {seed} {count}\n".encode())
        _receive(connection, tally, count)
        connection.shutdown(socket.SHUT_WR)
        _receive(connection, tally)
    return str(tally)


def download_to_end(address: Address, seed: int, count: int) -> str:
    """Receive the pattern until the server, which ends first, has ended; returns ``<count> <sha256>``."""
    tally = Tally()
    with dial(address) as connection:
        connection.sendall(f"source {seed} {count}\n".encode())
        _receive(connection, tally)
    return str(tally)


def _receive(connection: socket.socket, tally: Tally, until: int | None = None) -> None:
    """Read to the end of stream, or until the tally has counted so many bytes."""
    buffer = memoryview(bytearray(READ_BYTES))
    while until is None or tally.count < until:
        count = connection.recv_into(buffer)
        if not count:
            return
        tally.add(buffer[:count])


def echo(address: Address, payload: bytes) -> bytes:
    """Send, half-close while the answer is still coming, and return everything that came back."""
    with dial(address) as connection:
        connection.sendall(b"echo\n")
        with _sending(connection, [memoryview(payload)]):
            return read_all(connection)


def exchange(connection: socket.socket, seed: int, count: int) -> str:
    """The same with the pattern over a connection that echoes already; returns ``<count> <sha256>``."""
    tally = Tally()
    with _sending(connection, pattern(seed, count)):
        _receive(connection, tally)
    return str(tally)


@contextmanager
def _sending(connection: socket.socket, pieces: Iterable[memoryview]) -> Iterator[None]:
    def send() -> None:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        yield
        sent.result()


def abort(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    connection.close()


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """``work(0)`` to ``work(count - 1)`` in as many threads, all released together."""
    barrier = threading.Barrier(count)

    def run(index: int) -> T:
        barrier.wait(SOCKET_SECONDS)
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class OpenEchoes:
    """Many open echo connections held at once; each has proven that it carries bytes both ways."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> OpenEchoes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, address: Address, count: int, *, burst: int = 64) -> None:
        """Open ``count`` more, ``burst`` at a time so that no accept queue overflows."""
        while count > 0:
            fresh = [dial(address) for _ in range(min(burst, count))]
            self.sockets += fresh
            count -= len(fresh)
            for connection in fresh:
                connection.sendall(b"echo\n!")
            for connection in fresh:
                read_exactly(connection, 1)

    def check(self) -> None:
        """Send one byte through every connection and read it back."""
        for connection in self.sockets:
            connection.sendall(b"?")
        for connection in self.sockets:
            read_exactly(connection, 1)

    def close(self) -> None:
        """Close all of them."""
        for connection in self.sockets:
            connection.close()
        self.sockets.clear()
