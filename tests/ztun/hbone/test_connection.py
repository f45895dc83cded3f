"""One tunnel connection against a peer of raw frames: greeting, streams, credit, keepalive and the end."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.ztun.hbone.rig import CONNECT, OK, REFUSED, Bench, Tray, of, parse, resets
from ztun.hbone.settings import KIB, MIB, TunnelSettings
from ztun.hbone.stream import TunnelStream
from ztun.hbone.wire import CLIENT_PREFACE, MAX_STREAM_ID, ErrorCode

pytestmark = pytest.mark.unit

ROLES = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
INITIAL_WINDOW_SIZE = SettingsFrame.INITIAL_WINDOW_SIZE
MAX_FRAME_SIZE = SettingsFrame.MAX_FRAME_SIZE
MAX_CONCURRENT_STREAMS = SettingsFrame.MAX_CONCURRENT_STREAMS


def established(bench: Bench, stream_id: int = 1) -> tuple[TunnelStream, Tray]:
    return bench.established() if bench.tunnel.client else bench.accept(stream_id)


# -- the greeting ------------------------------------------------------------------------------------------------


OWN_ADDITIONS = {
    SettingsFrame.HEADER_TABLE_SIZE: 0,  # header blocks that depend on nothing are read much faster
    SettingsFrame.ENABLE_CONNECT_PROTOCOL: 0,  # the default, in words
    SettingsFrame.ENABLE_PUSH: 0,
}


def test_a_client_greets_as_ztunnel_does() -> None:
    greeting = Bench(client=True, greet=False).wire.take()
    assert greeting.startswith(CLIENT_PREFACE)
    settings, update = parse(greeting)
    assert settings.settings == OWN_ADDITIONS | {
        SettingsFrame.INITIAL_WINDOW_SIZE: 4_194_304,
        SettingsFrame.MAX_FRAME_SIZE: 1_048_576,
        SettingsFrame.MAX_HEADER_LIST_SIZE: 16_384,
        SettingsFrame.ENABLE_PUSH: 0,
    }
    assert (update.stream_id, update.window_increment) == (0, 16_777_216 - 65_535)


def test_a_server_greets_as_ztunnel_does() -> None:
    settings, update = parse(Bench(greet=False).wire.take())
    assert settings.settings == OWN_ADDITIONS | {
        SettingsFrame.INITIAL_WINDOW_SIZE: 4_194_304,
        SettingsFrame.MAX_FRAME_SIZE: 1_048_576,
        SettingsFrame.MAX_HEADER_LIST_SIZE: 65_536,
        SettingsFrame.MAX_CONCURRENT_STREAMS: 200,
    }
    assert (update.stream_id, update.window_increment) == (0, 16_777_216 - 65_535)


def test_the_smallest_connection_window_needs_no_update() -> None:
    (settings,) = parse(Bench(greet=False, settings=TunnelSettings(connection_window=65_535)).wire.take())
    assert isinstance(settings, SettingsFrame)


@ROLES
def test_settings_are_acknowledged_and_make_the_tunnel_ready(client: bool) -> None:
    bench = Bench(client=client, greet=False)
    if not client:
        bench.feed_bytes(CLIENT_PREFACE)
    bench.wire.take()
    assert not bench.tunnel.ready
    bench.feed(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 7}))
    assert bench.tunnel.ready
    assert bench.owner.settings == 1
    (ack,) = bench.sent()
    assert ack.flags == {"ACK"}


@ROLES
@pytest.mark.parametrize(
    "first",
    [PingFrame(0, opaque_data=b"too soon"), SettingsFrame(0, flags=["ACK"]), WindowUpdateFrame(0, 9)],
    ids=["ping", "ack", "window update"],
)
def test_the_first_frame_must_be_settings(client: bool, first: PingFrame) -> None:
    bench = Bench(client=client, greet=False)
    if not client:
        bench.feed_bytes(CLIENT_PREFACE)
    if isinstance(first, WindowUpdateFrame):
        first.window_increment = 9
    bench.feed(first)
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


# -- requests and answers ----------------------------------------------------------------------------------------


def test_a_request_is_answered_on_its_stream() -> None:
    bench = Bench()
    stream = bench.request(1)
    assert bench.sent() == []
    bench.tunnel.respond(stream, [*OK, (b"baggage", b"service.name=a")], end_stream=False)
    (answer,) = bench.sent()
    assert answer.stream_id == 1
    assert answer.flags == {"END_HEADERS"}


def test_a_refusal_ends_the_stream_and_says_that_its_data_is_not_wanted() -> None:
    bench = Bench()
    stream = bench.request(1)
    bench.tunnel.respond(stream, REFUSED, end_stream=True)
    answer, reset = bench.sent()
    assert answer.flags == {"END_HEADERS", "END_STREAM"}
    assert (reset.stream_id, reset.error_code) == (1, ErrorCode.NO_ERROR)
    assert stream.closed
    assert not bench.tunnel.streams
    bench.feed(DataFrame(1, b"under way"), DataFrame(1, flags=["END_STREAM"]))
    assert bench.sent() == []
    bench.assert_healthy()


def test_a_refusal_of_a_request_that_has_ended_needs_no_reset() -> None:
    bench = Bench()
    stream = bench.request(1, end_stream=True)
    bench.tunnel.respond(stream, REFUSED, end_stream=True)
    assert resets(bench.sent()) == []
    assert not bench.tunnel.streams


def test_an_answer_for_a_stream_that_was_reset_is_not_sent() -> None:
    bench = Bench()
    stream = bench.request(1)
    bench.feed(RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    bench.tunnel.respond(stream, OK, end_stream=False)
    assert bench.sent() == []


def test_a_request_that_ends_at_once_is_a_half_closed_connection() -> None:
    bench = Bench()
    stream = bench.request(1, end_stream=True)
    tray = bench.join(stream)
    assert tray.ended
    stream.offer(memoryview(b"the answer"))
    stream.offer_end()
    assert tray.closed == 1
    data = of(DataFrame, bench.sent())
    assert b"".join(frame.data for frame in data) == b"the answer"
    assert data[-1].flags == {"END_STREAM"}


def test_an_answer_that_ends_at_once_is_a_half_closed_connection() -> None:
    bench = Bench(client=True)
    stream, tray = bench.open()
    bench.feed(bench.headers(stream.id, OK, end_stream=True))
    stream.attach(tray, tray)
    assert tray.ended
    stream.offer_end()
    assert tray.closed == 1


def test_interim_answers_are_passed_over() -> None:
    bench = Bench(client=True)
    stream, tray = bench.open()
    bench.feed(bench.headers(stream.id, [(b":status", b"103")]))
    assert tray.answers == []
    bench.feed(bench.headers(stream.id, OK))
    assert tray.answers == [list(OK)]


def test_streams_are_numbered_by_the_client() -> None:
    bench = Bench(client=True)
    assert [bench.open()[0].id for _ in range(3)] == [1, 3, 5]
    bench.tunnel._next_stream = MAX_STREAM_ID
    assert bench.open()[0].id == MAX_STREAM_ID
    assert bench.tunnel.draining
    assert bench.tunnel.free_streams == 0


def test_early_data_waits_for_the_answer() -> None:
    """RFC 9110 section 9.3.6 lets a client send before the 200."""
    bench = Bench()
    stream = bench.request(1)
    bench.feed(DataFrame(1, b"early "), DataFrame(1, b"data", flags=["END_STREAM"]))
    tray = bench.join(stream)
    assert tray.taken == b"early data"
    assert tray.ended
    assert bench.tunnel.held == 0


def test_early_data_of_a_refused_request_is_dropped_and_its_credit_returned() -> None:
    settings = TunnelSettings(stream_window=64 * KIB, connection_window=256 * KIB)
    bench = Bench(settings=settings)
    for number in range(50):
        stream = bench.request(2 * number + 1)
        bench.feed(DataFrame(stream.id, bytes(16 * KIB)), DataFrame(stream.id, bytes(16 * KIB)))
        assert bench.tunnel.held == 32 * KIB
        bench.tunnel.respond(stream, REFUSED, end_stream=True)
        bench.tunnel.release_slot()
        assert bench.tunnel.held == 0
    bench.assert_healthy()


def test_data_before_the_answer_is_the_servers_error() -> None:
    bench = Bench(client=True)
    stream, tray = bench.open()
    bench.sent()
    bench.feed(DataFrame(stream.id, b"too soon"))
    assert tray.resets[0][0] == ErrorCode.PROTOCOL_ERROR
    assert resets(bench.sent()) == [(stream.id, ErrorCode.PROTOCOL_ERROR)]
    bench.assert_healthy()


@ROLES
@pytest.mark.parametrize("end_stream", [False, True])
def test_trailers_inside_a_tunnel_reset_the_stream_alone(client: bool, end_stream: bool) -> None:
    """RFC 9113 section 8.5: only DATA and stream management belong into a tunnelled connection."""
    bench = Bench(client=client)
    stream, tray = established(bench)
    bench.sent()
    bench.feed(bench.headers(stream.id, [(b"x-trailer", b"1")], end_stream=end_stream))
    assert tray.resets[0][0] == ErrorCode.PROTOCOL_ERROR
    assert resets(bench.sent()) == [(stream.id, ErrorCode.PROTOCOL_ERROR)]
    bench.assert_healthy()


def test_trailers_on_an_old_stream_do_not_cost_the_tunnel() -> None:
    """Thousands of streams later the old one is still known."""
    bench = Bench()
    old, tray = bench.accept(1)
    for number in range(1, 2_000):
        stream, _ = bench.accept(2 * number + 1)
        stream.abort(ErrorCode.CANCEL)
        bench.tunnel.release_slot()
    bench.feed(bench.headers(old.id, [(b"x-trailer", b"1")], end_stream=True))
    assert tray.resets[0][0] == ErrorCode.PROTOCOL_ERROR
    bench.assert_healthy()


def test_trailers_behind_a_request_that_is_not_answered_yet() -> None:
    bench = Bench()
    stream = bench.request(1)
    bench.feed(bench.headers(1, [(b"x-trailer", b"1")], end_stream=True))
    assert stream.closed
    bench.tunnel.respond(stream, OK, end_stream=False)
    assert resets(bench.sent()) == [(1, ErrorCode.PROTOCOL_ERROR)]
    bench.tunnel.release_slot()
    bench.assert_healthy()


@ROLES
def test_push_is_refused(client: bool) -> None:
    bench = Bench(client=client)
    stream, _ = established(bench)
    bench.feed(PushPromiseFrame(stream.id, promised_stream_id=2))
    bench.assert_closed(ErrorCode.PROTOCOL_ERROR)


def test_what_we_write_never_touches_the_peers_header_table() -> None:
    """Whatever the peer offers; so neither side has to remember every traceparent that was ever sent."""
    bench = Bench(client=True, peer_settings={SettingsFrame.HEADER_TABLE_SIZE: 2**32 - 1})
    decoder = Decoder()
    for number in range(100):
        headers = [*CONNECT, (b"traceparent", b"00-%032x-%016x-00" % (number, number))]
        bench.tunnel.open_stream(headers, Tray())
        (frame,) = bench.sent()
        assert decoder.decode(frame.data, raw=True) == headers
    assert decoder.header_table._current_size == 0


# -- limits on streams -------------------------------------------------------------------------------------------


def test_slots_come_back_with_the_work_only() -> None:
    bench = Bench(settings=TunnelSettings(max_concurrent_streams=2))
    for stream_id in (1, 3, 5, 7):
        stream, _ = bench.accept(stream_id)
        stream.abort(ErrorCode.CANCEL)
    bench.sent()
    bench.feed(bench.headers(9, CONNECT))
    assert resets(bench.sent()) == [(9, ErrorCode.REFUSED_STREAM)]
    bench.tunnel.release_slot()
    stream, _ = bench.accept(11)
    assert not stream.closed


def test_the_peers_limit_is_assumed_until_it_says_so() -> None:
    bench = Bench(client=True, greet=False)
    assert bench.tunnel.free_streams == 100
    bench.feed(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 3}))
    assert bench.tunnel.free_streams == 3
    bench.open()
    assert bench.tunnel.free_streams == 2
    bench.feed(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 0}))
    assert bench.tunnel.free_streams == 0
    bench.feed(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 9}))
    assert bench.tunnel.free_streams == 8
    bench.feed(SettingsFrame(0))
    assert bench.tunnel.free_streams == 8


def test_a_peer_without_a_limit_has_none() -> None:
    bench = Bench(client=True)
    assert bench.tunnel.free_streams == MAX_STREAM_ID


# -- credit ------------------------------------------------------------------------------------------------------


def granted(bench: Bench, stream_id: int) -> int:
    return sum(f.window_increment for f in of(WindowUpdateFrame, bench.sent()) if f.stream_id == stream_id)


@pytest.mark.parametrize("end", ["ordered", "reset by the peer", "reset by us", "unknown"])
def test_seventy_mebibytes_over_short_streams_do_not_freeze_the_tunnel(end: str) -> None:
    """Credit for the connection comes back for every byte, whatever became of its stream."""
    bench = Bench()
    window = TunnelSettings().connection_window
    sent = returned = 0
    number = 0
    while sent < 70 * MIB:
        stream, _ = bench.accept(2 * number + 1)
        number += 1
        if end == "unknown":
            stream.abort(ErrorCode.CANCEL)
        for _ in range(4):
            assert window - sent + returned >= 16 * KIB, "the peer has no window left"
            bench.feed(DataFrame(stream.id, bytes(16 * KIB)))
            sent += 16 * KIB
        if end == "ordered":
            bench.feed(DataFrame(stream.id, flags=["END_STREAM"]))
            stream.offer_end()
        elif end == "reset by the peer":
            bench.feed(RstStreamFrame(stream.id, error_code=ErrorCode.CANCEL))
        elif end == "reset by us":
            stream.abort(ErrorCode.CANCEL)
        bench.tunnel.release_slot()
        returned += granted(bench, 0)
    assert window - sent + returned == bench.tunnel.recv_window
    bench.assert_healthy()


def test_credit_for_a_stream_follows_its_delivery() -> None:
    bench = Bench(settings=TunnelSettings(stream_window=64 * KIB))
    stream, tray = bench.accept(1)
    bench.sent()
    tray.full = True
    for _ in range(4):
        bench.feed(DataFrame(1, bytes(16 * KIB)))
    assert granted(bench, 1) == 0
    assert bench.tunnel.held == 64 * KIB
    tray.full = False
    stream.sink_drained()
    assert granted(bench, 1) == 64 * KIB
    assert bench.tunnel.held == 0


def test_streams_that_nobody_reads_do_not_stop_the_others() -> None:
    settings = TunnelSettings(stream_window=MIB, connection_window=4 * MIB, held_limit=16 * MIB)
    bench = Bench(settings=settings)
    for number in range(12):
        _, tray = bench.accept(2 * number + 1)
        tray.full = True
        for _ in range(64):
            bench.feed(DataFrame(2 * number + 1, bytes(16 * KIB)))
    assert bench.tunnel.held == 12 * MIB
    _, tray = bench.accept(99)
    for _ in range(64):
        bench.feed(DataFrame(99, bytes(16 * KIB)))
    assert len(tray.taken) == MIB
    assert not bench.wire.closed


def test_above_the_limit_who_reads_still_gets_credit() -> None:
    """Only what is held waits for its credit: a stream that is read goes on for ever beside it."""
    settings = TunnelSettings(stream_window=MIB, connection_window=2 * MIB, held_limit=MIB // 2)
    bench = Bench(settings=settings)
    _, stalled = bench.accept(1)
    stalled.full = True
    for _ in range(48):
        bench.feed(DataFrame(1, bytes(16 * KIB)))
    assert bench.tunnel.held == 48 * 16 * KIB > settings.held_limit
    _, tray = bench.accept(3)
    for _ in range(1_024):
        bench.feed(DataFrame(3, bytes(16 * KIB)))
    assert len(tray.taken) == 16 * MIB
    assert not bench.wire.closed


def test_what_a_tunnel_holds_is_bounded() -> None:
    """Above the limit connection credit waits for delivery, and is paid back then."""
    settings = TunnelSettings(stream_window=MIB, connection_window=2 * MIB, held_limit=4 * MIB)
    bench = Bench(settings=settings)
    streams = []
    taken = 0
    for number in range(20):
        stream, tray = bench.accept(2 * number + 1)
        tray.full = True
        streams.append((stream, tray))
        for _ in range(64):
            if bench.tunnel.recv_window < 16 * KIB:
                break
            bench.feed(DataFrame(stream.id, bytes(16 * KIB)))
            taken += 16 * KIB
    assert settings.held_limit < bench.tunnel.held == taken
    assert taken <= settings.held_limit + settings.connection_window + 16 * KIB
    for stream, tray in streams:
        tray.full = False
        stream.sink_drained()
    assert bench.tunnel.held == 0
    assert bench.tunnel.recv_window > settings.connection_window * 3 // 4
    assert not bench.wire.closed


def test_the_peers_windows_bind_us() -> None:
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 100_000})
    one, first = bench.accept(1)
    two, second = bench.accept(3)
    bench.sent()
    assert one.offer(memoryview(bytes(60_000)))
    assert not two.offer(memoryview(bytes(60_000)))
    data = of(DataFrame, bench.sent())
    assert sum(len(frame.data) for frame in data) == 65_535
    assert two.backlog_bytes == 120_000 - 65_535
    bench.feed(WindowUpdateFrame(0, window_increment=1_000_000))
    data = of(DataFrame, bench.sent())
    assert sum(len(frame.data) for frame in data) == 120_000 - 65_535
    assert (first.drained, second.drained) == (0, 1)


def test_frames_are_no_larger_than_the_peer_allows() -> None:
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 10 * MIB})
    bench.feed(WindowUpdateFrame(0, window_increment=10 * MIB))
    stream, _ = bench.accept(1)
    bench.sent()
    stream.offer(memoryview(bytes(50_000)))
    assert [len(frame.data) for frame in of(DataFrame, bench.sent())] == [16_384, 16_384, 16_384, 848]
    bench.feed(SettingsFrame(0, settings={MAX_FRAME_SIZE: 40_000}))
    bench.sent()
    stream.offer(memoryview(bytes(50_000)))
    assert [len(frame.data) for frame in of(DataFrame, bench.sent())] == [40_000, 10_000]


def test_settings_that_shrink_frames_and_open_windows_at_once() -> None:
    """What the larger window sets free must already honour the smaller frame."""
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 0, MAX_FRAME_SIZE: 40_000})
    stream, _ = bench.accept(1)
    stream.offer(memoryview(bytes(30_000)))
    bench.sent()
    bench.feed(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 60_000, MAX_FRAME_SIZE: 16_384}))
    assert [len(frame.data) for frame in of(DataFrame, bench.sent())] == [16_384, 30_000 - 16_384]


def test_a_window_may_become_negative_and_recover() -> None:
    bench = Bench(peer_settings={INITIAL_WINDOW_SIZE: 1_000})
    stream, tray = bench.accept(1)
    stream.offer(memoryview(bytes(900)))
    bench.feed(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 100}))
    assert stream.send_window == -800
    bench.sent()
    assert stream.room() == 0
    assert stream.offer(memoryview(b"waits")) is False
    bench.feed(WindowUpdateFrame(1, window_increment=800))
    assert of(DataFrame, bench.sent()) == []
    bench.feed(WindowUpdateFrame(1, window_increment=3))
    assert [frame.data for frame in of(DataFrame, bench.sent())] == [b"wai"]
    bench.feed(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 200}))
    assert [frame.data for frame in of(DataFrame, bench.sent())] == [b"ts"]
    assert tray.drained == 1


@ROLES
def test_settings_that_make_a_window_too_large(client: bool) -> None:
    bench = Bench(client=client)
    stream, _ = established(bench)
    bench.feed(WindowUpdateFrame(stream.id, window_increment=2**31 - 1 - 65_535))
    assert not bench.wire.closed
    bench.feed(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 65_536}))
    bench.assert_closed(ErrorCode.FLOW_CONTROL_ERROR)


@ROLES
def test_a_connection_window_that_becomes_too_large(client: bool) -> None:
    bench = Bench(client=client)
    bench.feed(WindowUpdateFrame(0, window_increment=2**31 - 1))
    bench.assert_closed(ErrorCode.FLOW_CONTROL_ERROR)


def test_a_stream_window_that_becomes_too_large_costs_the_stream() -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    bench.sent()
    bench.feed(WindowUpdateFrame(1, window_increment=2**31 - 1))
    assert resets(bench.sent()) == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert tray.resets[0][0] == ErrorCode.FLOW_CONTROL_ERROR
    bench.assert_healthy()


def test_more_than_the_stream_window_costs_the_stream() -> None:
    bench = Bench(settings=TunnelSettings(stream_window=64 * KIB))
    _, tray = bench.accept(1)
    tray.full = True
    bench.sent()
    for _ in range(5):
        bench.feed(DataFrame(1, bytes(16 * KIB)))
    assert len(tray.taken) == 64 * KIB
    assert resets(bench.sent()) == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    bench.assert_healthy()


def test_more_than_the_connection_window_costs_the_tunnel() -> None:
    settings = TunnelSettings(stream_window=4 * MIB, connection_window=MIB, held_limit=0)
    bench = Bench(settings=settings)
    _, tray = bench.accept(1)
    tray.full = True
    for _ in range(66):
        bench.feed(DataFrame(1, bytes(16 * KIB)))
    bench.assert_closed(ErrorCode.FLOW_CONTROL_ERROR)


# -- resets ------------------------------------------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL, ErrorCode.CONNECT_ERROR, 0xBEEF])
def test_a_reset_of_the_peer_is_told_with_its_code(client: bool, code: int) -> None:
    bench = Bench(client=client)
    stream, tray = established(bench)
    stream.offer(memoryview(bytes(100_000)))
    bench.sent()
    bench.feed(RstStreamFrame(stream.id, error_code=code))
    assert tray.resets[0][0] == code
    assert stream.closed
    assert stream.backlog_bytes == 0
    bench.feed(WindowUpdateFrame(0, window_increment=200_000))
    assert bench.sent() == []
    stream.offer(memoryview(b"nobody"))
    stream.offer_end()
    stream.abort(ErrorCode.CANCEL)
    assert bench.sent() == []
    bench.assert_healthy()


@ROLES
def test_our_reset_is_sent_once_with_its_code(client: bool) -> None:
    bench = Bench(client=client)
    stream, tray = established(bench)
    bench.sent()
    stream.abort(ErrorCode.CONNECT_ERROR)
    stream.abort(ErrorCode.CONNECT_ERROR)
    assert resets(bench.sent()) == [(stream.id, ErrorCode.CONNECT_ERROR)]
    assert not tray.over
    assert bench.owner.streams_closed == 1
    bench.feed(DataFrame(stream.id, b"under way"))
    assert tray.taken == b""
    bench.assert_healthy()


# -- GOAWAY ------------------------------------------------------------------------------------------------------


def test_a_server_drains_with_two_goaways() -> None:
    bench = Bench()
    _, tray = bench.accept(1)
    bench.sent()
    bench.tunnel.drain(bench.now)
    (first,) = bench.sent()
    assert (first.last_stream_id, first.error_code) == (MAX_STREAM_ID, ErrorCode.NO_ERROR)
    bench.accept(3)  # was under way
    bench.sent()
    bench.now += 1.0
    bench.tunnel.tick(bench.now)
    (second,) = bench.sent()
    assert (second.last_stream_id, second.error_code) == (3, ErrorCode.NO_ERROR)
    bench.feed(bench.headers(5, CONNECT))
    assert resets(bench.sent()) == [(5, ErrorCode.REFUSED_STREAM)]
    bench.feed(DataFrame(1, b"goes on"))
    assert tray.taken == b"goes on"
    bench.tunnel.drain(bench.now)
    assert bench.sent() == []
    bench.tunnel.terminate(ErrorCode.NO_ERROR, "deadline")
    last = bench.assert_closed(ErrorCode.NO_ERROR)
    assert last.last_stream_id == 3, "the last stream id must not rise"


def test_a_client_drains_and_its_streams_go_on() -> None:
    bench = Bench(client=True)
    stream, tray = bench.established()
    bench.sent()
    bench.tunnel.drain(bench.now)
    (goaway,) = bench.sent()
    assert (goaway.last_stream_id, goaway.error_code) == (0, ErrorCode.NO_ERROR)
    assert bench.tunnel.free_streams == 0
    bench.feed(DataFrame(stream.id, b"goes on", flags=["END_STREAM"]))
    stream.offer_end()
    assert tray.taken == b"goes on"
    assert tray.closed == 1


def test_streams_above_the_last_id_can_be_tried_elsewhere_and_the_others_go_on() -> None:
    bench = Bench(client=True)
    first, tray = bench.established()
    lost = [bench.open()[1] for _ in range(3)]
    bench.feed(GoAwayFrame(0, last_stream_id=MAX_STREAM_ID, error_code=0, additional_data=b"soon"))
    assert bench.owner.goaways == [(0, b"soon")]
    assert bench.tunnel.free_streams == 0
    assert not any(tray.over for tray in lost)
    closed = bench.owner.streams_closed
    bench.feed(GoAwayFrame(0, last_stream_id=first.id, error_code=0))
    assert [tray.resets[0][0] for tray in lost] == [ErrorCode.REFUSED_STREAM] * 3
    assert bench.owner.streams_closed == closed + 3, "the pool learns that the tunnel is emptier"
    bench.feed(DataFrame(first.id, b"goes on"))
    assert tray.taken == b"goes on"
    first.offer(memoryview(b"so do we"))
    assert of(DataFrame, bench.sent())[-1].data == b"so do we"


def test_a_goaway_of_the_client_does_not_touch_its_streams() -> None:
    bench = Bench()
    stream, tray = bench.accept(1)
    bench.feed(GoAwayFrame(0, last_stream_id=0, error_code=0))
    bench.feed(DataFrame(1, b"goes on"))
    assert tray.taken == b"goes on"
    assert not stream.closed


@ROLES
def test_a_terminated_tunnel_tells_every_stream(client: bool) -> None:
    bench = Bench(client=client)
    stream, tray = established(bench)
    bench.tunnel.terminate(ErrorCode.NO_ERROR, "the workload is gone")
    assert tray.resets == [(ErrorCode.CONNECT_ERROR, "the workload is gone")]
    last = bench.assert_closed(ErrorCode.NO_ERROR)
    assert last.additional_data == b"the workload is gone"
    bench.tunnel.terminate(ErrorCode.NO_ERROR, "again")
    bench.tunnel.transport_lost("again")
    assert len(bench.owner.ends) == 1
    assert stream.closed


@ROLES
def test_a_lost_transport_tells_every_stream_and_sends_nothing(client: bool) -> None:
    bench = Bench(client=client)
    _, tray = established(bench)
    bench.sent()
    bench.tunnel.transport_lost("connection reset by peer")
    assert tray.resets[0][0] == ErrorCode.CONNECT_ERROR
    assert bench.owner.ends == [(ErrorCode.CONNECT_ERROR, "connection reset by peer")]
    assert bench.sent() == []
    bench.tunnel.tick(bench.now + 1_000)
    bench.tunnel.drain(bench.now)
    assert bench.sent() == []


def test_an_error_of_the_peer_costs_this_tunnel_with_its_reason() -> None:
    bench = Bench()
    bench.feed(DataFrame(99, b"never opened"))
    assert b"stream 99" in bench.assert_closed(ErrorCode.PROTOCOL_ERROR).additional_data


# -- keepalive ---------------------------------------------------------------------------------------------------


@ROLES
def test_a_silent_peer_is_pinged_and_given_up(client: bool) -> None:
    bench = Bench(client=client)
    start = bench.now
    pinged_at = closed_at = None
    for second in range(1, 60):
        bench.tunnel.tick(start + second)
        if pinged_at is None and of(PingFrame, parse(bytes(bench.wire.sent))):
            pinged_at = second
            bench.wire.take()
        if bench.tunnel.closed:
            closed_at = second
            break
    assert (pinged_at, closed_at) == (10, 30)
    # in order for the peer, if there is one after all; for us the tunnel is lost
    last = bench.assert_closed(ErrorCode.NO_ERROR, told=ErrorCode.CONNECT_ERROR)
    assert b"PING" in last.additional_data


@ROLES
def test_a_peer_that_answers_is_kept_for_ever(client: bool) -> None:
    bench = Bench(client=client)
    pings = 0
    for _ in range(1_000):
        bench.now += 1.0
        bench.tunnel.tick(bench.now)
        for ping in of(PingFrame, bench.sent()):
            pings += 1
            bench.feed(PingFrame(0, opaque_data=ping.opaque_data, flags=["ACK"]))
    assert 90 <= pings <= 100
    bench.assert_healthy()


def test_a_busy_peer_is_not_pinged_and_a_late_pong_is_forgiven() -> None:
    bench = Bench()
    bench.accept(1)
    bench.sent()
    for _ in range(100):
        bench.now += 1.0
        bench.feed(DataFrame(1, b"x"))
        bench.tunnel.tick(bench.now)
    assert bench.sent() == []
    bench.now += 10.0
    bench.tunnel.tick(bench.now)
    assert len(of(PingFrame, bench.sent())) == 1
    for _ in range(100):
        bench.now += 1.0
        bench.feed(DataFrame(1, b"x"))
        bench.tunnel.tick(bench.now)
    assert not bench.wire.closed
