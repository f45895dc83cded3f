"""The loads of the benchmark. Each function drives one address and returns plain figures.

Clients are blocking sockets or one epoll loop in this process, wrk for HTTP, and an own process for the bulk
transfer that runs beside small requests, so that what is measured is the path and not the client.
"""

from __future__ import annotations

import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import Process
from tests.peers.traffic import ROOT, Address, dial, read_exactly

PAYLOAD = b"x" * 64
CHUNK_BYTES = 256 * 1024
MEBIBYTE = 1024 * 1024
WRK_SPARE_SECONDS = 20.0
PARALLEL = 16
FEWEST_SAMPLES = 20  # however slow the path is: a percentile needs some


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one run, in microseconds."""

    p50: float
    p99: float


def round_trips(address: Address, seconds: float) -> Latency:
    """64-byte requests and answers, one at a time over one connection."""
    with dial(address) as connection:
        connection.sendall(b"echo\n" + PAYLOAD)
        read_exactly(connection, len(PAYLOAD))
        return _timed(lambda: _exchange(connection), seconds)


def _exchange(connection: socket.socket) -> None:
    connection.sendall(PAYLOAD)
    received = len(connection.recv(len(PAYLOAD)))
    if received < len(PAYLOAD):
        read_exactly(connection, len(PAYLOAD) - received)


def new_connections(address: Address, seconds: float) -> Latency:
    """Connect, send one byte, receive it; one connection after the other."""
    return _timed(lambda: _connect_once(address), seconds)


def _connect_once(address: Address) -> None:
    with dial(address) as connection:
        connection.sendall(b"echo\n!")
        read_exactly(connection, 1)


def _timed(once: Callable[[], None], seconds: float) -> Latency:
    clock, taken = time.perf_counter_ns, []
    end = clock() + int(seconds * 1e9)
    before = clock()
    while before < end or len(taken) < FEWEST_SAMPLES:
        once()
        after = clock()
        taken.append(after - before)
        before = after
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return Latency(cuts[49] / 1000, cuts[98] / 1000)


def parallel_connections(address: Address, seconds: float) -> float:
    """Connections per second, ``PARALLEL`` at a time: connect, send a byte, receive it, close."""
    poll, sockets, done = select.epoll(), {}, 0
    end = time.perf_counter() + seconds
    started = time.perf_counter()

    def begin() -> None:
        fresh = socket.socket()
        fresh.setblocking(False)
        fresh.connect_ex(address)
        sockets[fresh.fileno()] = fresh
        poll.register(fresh, select.EPOLLOUT)

    try:
        for _ in range(PARALLEL):
            begin()
        while (now := time.perf_counter()) < end:
            for number, event in poll.poll(1.0):
                current = sockets[number]
                if event & select.EPOLLOUT:
                    current.send(b"echo\n!")
                    poll.modify(current, select.EPOLLIN)
                elif current.recv(16) != b"!":
                    raise EOFError(f"{address} closed a connection before it answered")
                else:
                    del sockets[number]
                    current.close()
                    done += 1
                    begin()
        return done / (now - started)
    finally:
        poll.close()
        for left in sockets.values():
            left.close()


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk counted."""

    count: int
    per_second: float


def http_requests(address: Address, connections: int, seconds: int) -> Requests:
    """Keep-alive requests by wrk with one thread. Raises ``AssertionError`` when any of them failed."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise FileNotFoundError("wrk is not installed (Debian's package wrk)")
    argv = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", f"http://{address[0]}:{address[1]}/"]
    text = subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=seconds + WRK_SPARE_SECONDS
    ).stdout
    count = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", text)
    if count is None or rate is None or "Socket errors" in text or "Non-2xx" in text or not int(count[1]):
        raise AssertionError(f"{' '.join(argv)}\n{text}")
    return Requests(int(count[1]), float(rate[1]))


def bulk_up(address: Address, mebibytes: int) -> float:
    """Gbit/s from client to server over one connection, until the server has read every byte."""
    piece, count = bytes(CHUNK_BYTES), mebibytes * MEBIBYTE
    with dial(address) as connection:
        started = time.perf_counter()
        connection.sendall(f"take {count}\n".encode())
        for _ in range(count // CHUNK_BYTES):
            connection.sendall(piece)
        read_exactly(connection, len(b"taken\n"))
        taken = time.perf_counter() - started
    return count * 8 / taken / 1e9


def bulk_down(address: Address, mebibytes: int) -> float:
    """Gbit/s from server to client over one connection."""
    left = count = mebibytes * MEBIBYTE
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with dial(address) as connection:
        started = time.perf_counter()
        connection.sendall(f"send 1 {count}\n".encode())
        while left > 0 and (received := connection.recv_into(buffer)):
            left -= received
        taken = time.perf_counter() - started
    if left:
        raise EOFError(f"{address} sent {count - left} of {count} bytes")
    return count * 8 / taken / 1e9


def bulk_at_once(address: Address, mebibytes: int, connections: int = 8) -> float:
    """Gbit/s over several connections together, every other one in each direction."""
    each = mebibytes // connections
    loads = [bulk_up if index % 2 else bulk_down for index in range(connections)]
    with ThreadPoolExecutor(connections) as pool:
        started = time.perf_counter()
        list(pool.map(lambda load: load(address, each), loads))
        return each * connections * MEBIBYTE * 8 / (time.perf_counter() - started) / 1e9


def beside_bulk(address: Address, seconds: float, log: Path) -> Latency:
    """64-byte round trips while another process uploads through the same address."""
    argv = [sys.executable, "-m", "tests.bench.load", address[0], str(address[1])]
    flood = Process(
        "bulk",
        argv,
        log,
        ready=lambda: flood.log_tail().endswith("flowing\n"),
        environment={"PYTHONPATH": str(ROOT)},
    )
    log.unlink(missing_ok=True)
    with flood:
        return round_trips(address, seconds)


def _flood(arguments: Sequence[str]) -> None:
    """The process of :func:`beside_bulk`: upload until it is ended."""
    piece = bytes(CHUNK_BYTES)
    with dial((arguments[0], int(arguments[1]))) as connection:
        connection.sendall(b"take 0\n")
        for _ in range(64):
            connection.sendall(piece)
        print("flowing", flush=True)
        while True:
            connection.sendall(piece)


if __name__ == "__main__":
    _flood(sys.argv[1:])
