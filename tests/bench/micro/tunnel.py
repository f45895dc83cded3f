"""``make bench-micro``: frames and header blocks, as the data path meets them. Prints, asserts nothing about time."""

from __future__ import annotations

import itertools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.ztun.hbone.rig import OK, Bench, Tray, Wire
from ztun.hbone.connect import connect_headers, parse_request
from ztun.hbone.headers import HeaderDecoder, check_request, encode_headers
from ztun.hbone.stream import TunnelStream
from ztun.hbone.wire import data_header, headers_frame

pytestmark = pytest.mark.unit

REQUEST = connect_headers(
    "10.0.2.10:9000",
    baggage="k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=telnet-client",
    forwarded="for=10.0.1.10",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)


class Void(Wire):
    """A wire that keeps nothing."""

    def append(self, chunk: bytes) -> None:
        pass


class Drain(Tray):
    """A sink that takes everything and keeps nothing."""

    def offer(self, data: memoryview) -> bool:
        return True


def accepted() -> tuple[Bench, TunnelStream]:
    """A server side that keeps nothing of what it sends, with one open stream whose payload goes nowhere."""
    bench = Bench()
    bench.tunnel.output = Void()
    stream = bench.request(1)
    bench.tunnel.respond(stream, OK, end_stream=False)
    drain = Drain()
    stream.owner = drain
    stream.attach(drain, drain)
    return bench, stream


@pytest.mark.parametrize("size", [64, 16 * 1024], ids=["64 B", "16 KiB"])
def test_receive_data(benchmark: BenchmarkFixture, size: int) -> None:
    """One DATA frame: parsed, delivered, credited."""
    bench, stream = accepted()
    frame = memoryview(data_header(stream.id, size) + bytes(size))
    benchmark(bench.tunnel.receive, frame, bench.now)
    assert bench.owner.ends == []


def test_receive_64_frames_in_one_read(benchmark: BenchmarkFixture) -> None:
    """What 64 busy connections amount to: a read with a small frame for each."""
    bench, stream = accepted()
    read = memoryview((data_header(stream.id, 64) + bytes(64)) * 64)
    benchmark(bench.tunnel.receive, read, bench.now)
    assert bench.owner.ends == []


def test_life_of_a_stream_at_the_server(benchmark: BenchmarkFixture) -> None:
    """CONNECT received and answered, then both directions ended."""
    bench, _ = accepted()
    block = encode_headers(REQUEST)
    ids = itertools.count(3, 2)

    def live() -> None:
        number = next(ids)
        bench.feed_bytes(headers_frame(number, block, end_stream=False))
        stream = bench.owner.requests.pop()[0]
        bench.tunnel.respond(stream, OK, end_stream=False)
        drain = Drain()
        stream.owner = drain
        stream.attach(drain, drain)
        bench.feed_bytes(data_header(number, 0, end_stream=True))
        stream.offer_end()
        bench.tunnel.release_slot()

    benchmark(live)
    assert bench.owner.ends == []
    assert len(bench.tunnel.streams) == 1


def test_encode_a_request_block(benchmark: BenchmarkFixture) -> None:
    assert benchmark(encode_headers, REQUEST)


def test_decode_a_request_block(benchmark: BenchmarkFixture) -> None:
    """Decoded, checked against RFC 9113 and read as a CONNECT request."""
    decoder = HeaderDecoder(max_size=65536, max_fields=64)
    decoder.table_refused()
    block = encode_headers(REQUEST)

    def read() -> str:
        headers = decoder.decode(block)
        check_request(headers)
        return parse_request(headers).authority

    assert benchmark(read) == "10.0.2.10:9000"
