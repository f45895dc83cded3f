"""One stream as a sink and as a source: order, room, ends and what waits."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from tests.ztun.hbone.rig import OK, Bench, Tray, of
from ztun.hbone.stream import HEADROOM_BYTES, WRITE_THROUGH_BYTES
from ztun.hbone.wire import ErrorCode

pytestmark = pytest.mark.unit

INITIAL_WINDOW_SIZE = SettingsFrame.INITIAL_WINDOW_SIZE


def payload(bench: Bench) -> bytes:
    return b"".join(frame.data for frame in of(DataFrame, bench.sent()))


def in_place(data: bytes) -> memoryview:
    return memoryview(bytearray(HEADROOM_BYTES) + data)


def test_both_ways_end_for_themselves() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    bench.sent()
    stream.offer(memoryview(b"down"))
    stream.offer_end()
    down = of(DataFrame, bench.sent())
    assert [(frame.data, set(frame.flags)) for frame in down] == [(b"down", set()), (b"", {"END_STREAM"})]
    assert not tray.over
    bench.feed(DataFrame(1, b"up goes on"))
    assert tray.taken == b"up goes on"
    bench.feed(DataFrame(1, flags=["END_STREAM"]))
    assert tray.ended
    assert tray.closed == 1
    assert not bench.tunnel.streams


def test_the_peer_may_end_first() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    bench.sent()
    bench.feed(DataFrame(1, b"up", flags=["END_STREAM"]))
    assert tray.ended
    assert not tray.over
    stream.offer(memoryview(b"down goes on"))
    stream.offer_end()
    assert payload(bench) == b"down goes on"
    assert tray.closed == 1


def test_the_end_waits_for_what_was_offered_before() -> None:
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 5})
    stream, tray = bench.accept(1)
    bench.sent()
    assert stream.offer(memoryview(b"hello world")) is False
    stream.offer_end()
    assert payload(bench) == b"hello"
    bench.feed(WindowUpdateFrame(1, window_increment=100))
    rest = of(DataFrame, bench.sent())
    assert b"".join(frame.data for frame in rest) == b" world"
    assert [frame.flags == {"END_STREAM"} for frame in rest] == [False, True]
    assert tray.drained == 1, "a source that has ended may hold something for what it offered"


@pytest.mark.parametrize("late", ["stream credit", "connection credit", "transport"])
def test_a_stream_that_ended_while_it_waited_for_room_ends_once(late: str) -> None:
    """A source that was told to stop may end at once; the room that comes later is of no use to it."""
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 65_535})
    stream, _ = bench.accept(1)
    bench.sent()
    if late == "transport":
        bench.tunnel.transport_congested()
        assert stream.offer(memoryview(b"all there is")) is False
    else:
        assert stream.offer(memoryview(bytes(65_535))) is False
    stream.offer_end()
    assert of(DataFrame, bench.sent())[-1].flags == {"END_STREAM"}
    if late == "transport":
        bench.tunnel.transport_drained()
    else:
        bench.feed(WindowUpdateFrame(1 if late == "stream credit" else 0, window_increment=30_000))
    assert of(DataFrame, bench.sent()) == []
    assert not bench.tunnel.waiting


def test_an_empty_window_stops_the_source_and_credit_starts_it_again() -> None:
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 10})
    stream, tray = bench.accept(1)
    assert stream.room() == 10
    assert stream.offer(memoryview(b"0123456789")) is False
    assert stream.room() == 0
    bench.feed(WindowUpdateFrame(1, window_increment=4))
    assert tray.drained == 1
    assert stream.room() == 4


def test_what_waits_keeps_its_order_whatever_comes_behind_it() -> None:
    """The connection window opens while the transport is full: the window alone does not overtake the backlog."""
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 1 << 20})
    stream, _ = bench.accept(1)
    bench.sent()
    stream.offer(memoryview(bytes(65_535) + b"second "))
    assert payload(bench) == bytes(65_535)
    bench.tunnel.transport_congested()
    bench.feed(WindowUpdateFrame(0, window_increment=100_000))
    assert stream.offer(memoryview(b"third ")) is False
    assert stream.offer_in_place(in_place(b"fourth ")) is False
    stream.offer_end()
    bench.tunnel.transport_drained()
    assert payload(bench) == b"second third fourth "
    assert stream.local_ended
    assert stream.backlog_bytes == 0


@pytest.mark.parametrize("size", [1, 1_000, WRITE_THROUGH_BYTES, 16_384, 16_385, 65_535, 65_536, 100_000])
def test_in_place_or_not_the_peer_gets_the_same(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    for peer_settings in ({}, {INITIAL_WINDOW_SIZE: 1 << 20, SettingsFrame.MAX_FRAME_SIZE: 1 << 20}):
        bench = Bench(peer_settings=peer_settings)
        stream, _ = bench.accept(1)
        bench.sent()
        more = stream.offer_in_place(in_place(data))
        assert more is (size < 65_535)
        first = payload(bench)
        assert first == data[: min(size, 65_535)]
        bench.feed(WindowUpdateFrame(0, window_increment=200_000))
        bench.feed(WindowUpdateFrame(1, window_increment=200_000))
        assert first + payload(bench) == data
        assert stream.bytes_sent == size


def test_a_full_transport_stops_the_source() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    bench.tunnel.transport_congested()
    assert stream.room() == 0
    assert stream.offer_in_place(in_place(b"this much still goes")) is False
    bench.tunnel.transport_drained()
    assert tray.drained == 1
    assert stream.room() > 0


def test_what_the_sink_holds_is_credited_when_it_drains() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    tray.full = True
    bench.feed(DataFrame(1, bytes(1_000)))
    assert (stream.held, bench.tunnel.held, stream.owed) == (1_000, 1_000, 0)
    tray.full = False
    stream.sink_drained()
    assert (stream.held, bench.tunnel.held, stream.owed) == (0, 0, 1_000)
    stream.sink_drained()
    assert stream.owed == 1_000


@pytest.mark.parametrize("end", ["reset", "abort", "terminate", "lost"])
def test_nothing_is_held_for_a_stream_that_is_gone(end: str) -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    tray.full = True
    bench.feed(DataFrame(1, bytes(1_000)))
    stream.offer(memoryview(bytes(100_000)))
    if end == "reset":
        bench.feed(RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    elif end == "abort":
        stream.abort(ErrorCode.CANCEL)
    elif end == "terminate":
        bench.tunnel.terminate(ErrorCode.NO_ERROR, "enough")
    else:
        bench.tunnel.transport_lost("gone")
    assert bench.tunnel.held == 0
    assert stream.backlog_bytes == 0
    assert not stream.backlog
    assert not bench.tunnel.waiting
    stream.sink_drained()
    assert bench.tunnel.held == 0
    assert stream.offer(memoryview(b"nobody")) is True


def test_a_stream_that_ended_in_order_holds_what_its_sink_has_not_delivered() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    tray.full = True
    bench.feed(DataFrame(1, bytes(1_000), flags=["END_STREAM"]))
    stream.offer_end()
    assert stream.closed
    assert bench.tunnel.held == 1_000
    stream.sink_drained()
    assert bench.tunnel.held == 0


def test_whoever_joined_a_stream_lets_go_of_what_it_holds() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    tray.full = True
    bench.feed(DataFrame(1, bytes(1_000), flags=["END_STREAM"]))
    stream.offer_end()
    stream.release()
    assert bench.tunnel.held == 0


def test_payload_and_end_that_come_before_the_other_side_wait_for_it() -> None:
    bench = Bench(client=True)
    stream, tray = bench.open()
    bench.feed(bench.headers(stream.id, OK), DataFrame(stream.id, b"hello", flags=["END_STREAM"]))
    assert bench.tunnel.held == 5
    stream.attach(tray, tray)
    assert tray.taken == b"hello"
    assert tray.ended
    assert bench.tunnel.held == 0


def test_early_payload_for_a_sink_that_is_full_stays_held() -> None:
    bench = Bench()
    stream = bench.request(1)
    bench.feed(DataFrame(1, b"early"))
    tray = Tray()
    tray.full = True
    bench.tunnel.respond(stream, OK, end_stream=False)
    stream.attach(tray, tray)
    assert tray.taken == b"early"
    assert bench.tunnel.held == 5
    tray.full = False
    stream.sink_drained()
    assert bench.tunnel.held == 0


def test_one_stream_that_ends_another_while_room_is_given_out() -> None:
    """What is resumed first may close what waits behind it."""
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 1 << 20})
    one, first = bench.accept(1)
    two, second = bench.accept(3)
    bench.tunnel.transport_congested()
    one.offer(memoryview(b"one"))
    two.offer(memoryview(b"two"))
    bench.sent()
    first.sink_drained = lambda: two.abort(ErrorCode.CANCEL)  # type: ignore[method-assign]
    bench.tunnel.transport_drained()
    assert second.drained == 0
    assert of(DataFrame, bench.sent()) == []
    assert list(bench.tunnel.streams) == [1]
