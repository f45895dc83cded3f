"""Frames out of bytes: chunks of any size, padding, unknown frames, wrong sizes, wrong places."""

from __future__ import annotations

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.ztun.hbone.rig import CONNECT, Bench, of, resets
from ztun.hbone.settings import KIB, MIB, TunnelSettings
from ztun.hbone.wire import CLIENT_PREFACE, ErrorCode

pytestmark = pytest.mark.unit


def raw(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 9, 10, 17, 1_000])
def test_chunks_of_any_size(chunk: int) -> None:
    bench = Bench(greet=False)
    frames: list[Frame] = [
        SettingsFrame(0),
        bench.headers(1, CONNECT),
        DataFrame(1, b"one"),
        PingFrame(0, opaque_data=b"01234567"),
        DataFrame(1, b"two" * 50, pad_length=20, flags=["PADDED"]),
        DataFrame(1, b"three", flags=["END_STREAM"]),
    ]
    data = CLIENT_PREFACE + b"".join(frame.serialize() for frame in frames)
    for start in range(0, len(data), chunk):
        bench.feed_bytes(data[start : start + chunk])
    stream, headers = bench.owner.requests[0]
    assert headers == list(CONNECT)
    tray = bench.join(stream)
    assert tray.taken == b"one" + b"two" * 50 + b"three"
    assert tray.ended
    assert len(of(PingFrame, bench.sent())) == 1


def test_payload_is_passed_on_before_its_frame_is_whole() -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    frame = DataFrame(1, b"0123456789").serialize()
    bench.feed_bytes(frame[:12])
    assert tray.taken == b"012"
    bench.feed_bytes(frame[12:])
    assert tray.taken == b"0123456789"


def test_a_stream_may_be_reset_in_the_middle_of_a_frame() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    frame = DataFrame(1, bytes(1_000), flags=["END_STREAM"]).serialize()
    bench.feed_bytes(frame[:300])
    stream.abort(ErrorCode.CANCEL)
    bench.feed_bytes(frame[300:])
    assert len(tray.taken) == 291
    assert not tray.ended
    bench.assert_healthy()


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/3"])
@pytest.mark.parametrize("chunk", [1, 100])
def test_something_that_is_not_http2(greeting: bytes, chunk: int) -> None:
    bench = Bench(greet=False)
    for start in range(0, len(greeting), chunk):
        bench.feed_bytes(greeting[start : start + chunk])
    assert b"preface" in bench.assert_closed(ErrorCode.PROTOCOL_ERROR).additional_data


def test_a_server_that_does_not_speak_http2() -> None:
    bench = Bench(client=True, greet=False)
    bench.feed_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert bench.tunnel.closed
    assert bench.wire.closed


@pytest.mark.parametrize("padding", [0, 1, 200, 255])
@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_padding_is_dropped_and_paid_for(padding: int, chunk: int) -> None:
    settings = TunnelSettings(stream_window=64 * KIB, connection_window=64 * KIB)
    bench = Bench(settings=settings)
    _, tray = bench.accept(1)
    for _ in range(500):
        data = DataFrame(1, b"payload", pad_length=padding, flags=["PADDED"]).serialize()
        for start in range(0, len(data), chunk):
            bench.feed_bytes(data[start : start + chunk])
    assert tray.taken == b"payload" * 500
    stream = bench.tunnel.streams[1]
    assert stream.recv_window > 48 * KIB - 300
    assert bench.tunnel.recv_window > 48 * KIB - 300
    bench.assert_healthy()


def test_padding_at_the_end_of_a_stream() -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    bench.feed(DataFrame(1, b"last", pad_length=9, flags=["PADDED", "END_STREAM"]))
    assert tray.taken == b"last"
    assert tray.ended


def test_padding_longer_than_its_frame() -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed_bytes(raw(0, 0x8, 1, b"\x05data"))
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


def test_a_padded_frame_without_a_pad_length() -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed_bytes(raw(0, 0x8, 1, b""))
    bench.assert_closed(ErrorCode.FRAME_SIZE_ERROR)


def test_frames_of_the_advertised_size_are_taken_and_larger_ones_are_not() -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    bench.feed(DataFrame(1, bytes(MIB)))
    assert len(tray.taken) == MIB
    bench.feed(DataFrame(1, bytes(MIB + 1)))
    bench.assert_closed(ErrorCode.FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("kind", "stream_id", "size"),
    [(6, 0, 7), (6, 0, 9), (4, 0, 5), (3, 1, 3), (3, 1, 5), (8, 0, 3), (8, 1, 5), (7, 0, 7)],
    ids=["ping", "ping", "settings", "reset", "reset", "window update", "window update", "goaway"],
)
def test_control_frames_of_the_wrong_size(kind: int, stream_id: int, size: int) -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed_bytes(raw(kind, 0, stream_id, bytes(size)))
    assert bench.tunnel.closed
    assert bench.owner.ends[0][0] in (ErrorCode.FRAME_SIZE_ERROR, ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 7, 8])
def test_a_control_frame_that_is_too_large_is_refused_before_it_is_read(kind: int) -> None:
    bench = Bench()
    bench.feed_bytes((65_537).to_bytes(3, "big") + bytes([kind, 0]) + (1).to_bytes(4, "big"))
    bench.assert_closed(ErrorCode.FRAME_SIZE_ERROR)


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_unknown_frames_are_skipped(size: int) -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    data = DataFrame(1, b"a").serialize() + raw(0x42, 0xFF, 1, bytes(size)) + DataFrame(1, b"b").serialize()
    for start in range(0, len(data), 1_000):
        bench.feed_bytes(data[start : start + 1_000])
    assert tray.taken == b"ab"
    bench.assert_healthy()


@pytest.mark.parametrize(
    "between",
    [
        DataFrame(1, b"data"),
        PingFrame(0, opaque_data=b"01234567"),
        ContinuationFrame(5, data=b""),
        HeadersFrame(5, data=b"", flags=["END_HEADERS"]),
        RstStreamFrame(3),
    ],
    ids=["data", "ping", "continuation of another", "headers", "reset"],
)
def test_nothing_may_stand_inside_a_header_block(between: Frame) -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed(HeadersFrame(3, data=b""), between)
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


def test_a_continuation_without_a_header_block() -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed(ContinuationFrame(1, data=b"", flags=["END_HEADERS"]))
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


IDLE = [
    DataFrame(7, b"x"),
    DataFrame(2, b"x"),
    RstStreamFrame(7),
    WindowUpdateFrame(7, window_increment=1),
    WindowUpdateFrame(2, window_increment=1),
]


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("frame", IDLE, ids=lambda frame: f"{type(frame).__name__}-{frame.stream_id}")
def test_frames_for_streams_that_were_never_opened(client: bool, frame: Frame) -> None:
    bench = Bench(client=client)
    if client:
        bench.established()
    else:
        bench.accept(1)
    bench.feed(frame)
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "data",
    [
        raw(0, 0, 0, b"x"),
        raw(3, 0, 0, bytes(4)),
        raw(1, 4, 0, b""),
        raw(8, 0, 0, bytes(4)),
        raw(4, 0, 1, b""),
        raw(6, 0, 1, bytes(8)),
        raw(7, 0, 1, bytes(8)),
    ],
    ids=["data", "reset", "headers", "no credit", "settings", "ping", "goaway"],
)
def test_frames_on_the_wrong_kind_of_stream(data: bytes) -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed_bytes(data)
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


def test_data_behind_the_end_resets_the_stream() -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    bench.sent()
    bench.feed(DataFrame(1, b"x", flags=["END_STREAM"]), DataFrame(1, b"y"))
    assert tray.taken == b"x"
    assert resets(bench.sent()) == [(1, ErrorCode.STREAM_CLOSED)]
    bench.assert_healthy()


def test_frames_behind_the_end_of_the_connection_are_not_looked_at() -> None:
    bench = Bench()
    bench.feed(DataFrame(99, b"x"), bench.headers(1, CONNECT))
    assert bench.owner.requests == []
    assert len(of(GoAwayFrame, bench.sent())) == 1


def test_a_header_block_that_cannot_be_decoded() -> None:
    bench = Bench()
    bench.feed(HeadersFrame(1, data=b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"]))
    bench.assert_closed(ErrorCode.COMPRESSION_ERROR)
