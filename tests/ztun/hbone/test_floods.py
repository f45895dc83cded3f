"""Every abuse that the guard knows: the attack ends the connection, and honest traffic that looks like it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.ztun.hbone.rig import CONNECT, OK, REFUSED, Bench, Fields, of, resets
from ztun.hbone.guard import Abuse, GuardLimits
from ztun.hbone.settings import KIB, MIB, TunnelSettings
from ztun.hbone.wire import ErrorCode

pytestmark = pytest.mark.unit

LIMITS = GuardLimits()
ROLES = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
SECOND = 1.0


def per_window(abuse: Abuse) -> int:
    return LIMITS.budgets[abuse].per_window


def flood(bench: Bench, frame: Callable[[], Frame], allowed: int, abuse: Abuse) -> None:
    """``allowed`` of them are tolerated, and one more is not."""
    for _ in range(allowed):
        bench.feed(frame())
    assert bench.owner.trips == []
    bench.feed(frame())
    bench.assert_tripped(abuse)


def test_every_abuse_of_the_guard_has_an_attack_here() -> None:
    counted = set(LIMITS.budgets)
    bounded = {Abuse.CONTINUATION, Abuse.HEADER_LIST, Abuse.UNSENT_CONTROL}
    assert counted | bounded == set(Abuse)


# -- rapid reset (CVE-2023-44487) --------------------------------------------------------------------------------


def test_rapid_reset() -> None:
    bench = Bench()
    for number in range(per_window(Abuse.RAPID_RESET) + 1):
        assert not bench.wire.closed
        bench.request(2 * number + 1)
        bench.tunnel.release_slot()
        bench.feed(RstStreamFrame(2 * number + 1, error_code=ErrorCode.CANCEL))
    bench.assert_tripped(Abuse.RAPID_RESET)


def test_rapid_reset_below_the_rate_ends_with_the_budget_of_an_hour() -> None:
    bench = Bench()
    for number in range(LIMITS.budgets[Abuse.RAPID_RESET].per_hour + 1):
        assert not bench.wire.closed
        bench.now += SECOND / per_window(Abuse.RAPID_RESET) * 1.01
        bench.request(2 * number + 1)
        bench.tunnel.release_slot()
        bench.feed(RstStreamFrame(2 * number + 1, error_code=ErrorCode.CANCEL))
    bench.assert_tripped(Abuse.RAPID_RESET)


def test_resets_before_the_work_is_done_do_not_free_slots() -> None:
    """CVE-2025-8671 as well: what a reset stream set in motion still costs."""
    bench = Bench(settings=TunnelSettings(max_concurrent_streams=10))
    for number in range(50):
        bench.feed(bench.headers(2 * number + 1, CONNECT))
        bench.feed(RstStreamFrame(2 * number + 1, error_code=ErrorCode.CANCEL))
    assert len(bench.owner.requests) == 20
    assert resets(bench.sent()) == [(2 * number + 1, ErrorCode.REFUSED_STREAM) for number in range(20, 50)]


def test_a_peer_at_the_limit_may_open_a_stream_as_soon_as_another_has_ended() -> None:
    """The end of a stream is known to the peer before the application's connection is closed."""
    bench = Bench(settings=TunnelSettings(max_concurrent_streams=10))
    open_streams = [bench.accept(2 * number + 1)[0] for number in range(10)]
    for number in range(10, 20):
        ended = open_streams.pop(0)
        ended.offer_end()
        bench.feed(DataFrame(ended.id, flags=["END_STREAM"]), bench.headers(2 * number + 1, CONNECT))
        assert len(bench.owner.requests) == number + 1
    assert resets(bench.sent()) == []


def test_five_thousand_short_streams_that_end_in_order_are_no_rapid_reset() -> None:
    bench = Bench()
    for number in range(5_000):
        stream, tray = bench.accept(2 * number + 1)
        bench.feed(DataFrame(stream.id, b"hello", flags=["END_STREAM"]))
        stream.offer(memoryview(b"hello back"))
        stream.offer_end()
        assert tray.closed == 1
        bench.tunnel.release_slot()
    bench.assert_healthy()


def test_resets_after_our_answer_are_the_peers_right() -> None:
    bench = Bench()
    for number in range(500):
        stream, tray = bench.accept(2 * number + 1)
        bench.feed(RstStreamFrame(stream.id, error_code=ErrorCode.CANCEL))
        assert tray.resets
        bench.tunnel.release_slot()
    bench.assert_healthy()


def test_a_server_may_reset_what_we_open() -> None:
    bench = Bench(client=True)
    for _ in range(500):
        stream, tray = bench.open()
        bench.feed(RstStreamFrame(stream.id, error_code=ErrorCode.REFUSED_STREAM))
        assert tray.resets[0][0] == ErrorCode.REFUSED_STREAM
    bench.assert_healthy()


# -- MadeYouReset (CVE-2025-8671) --------------------------------------------------------------------------------


def overflow_the_window(bench: Bench, stream_id: int) -> None:
    bench.feed(WindowUpdateFrame(stream_id, window_increment=2**31 - 1))


def add_nothing_to_the_window(bench: Bench, stream_id: int) -> None:
    bench.feed_bytes(b"\x00\x00\x04\x08\x00" + stream_id.to_bytes(4, "big") + bytes(4))


def send_behind_the_end(bench: Bench, stream_id: int) -> None:
    bench.feed(DataFrame(stream_id, flags=["END_STREAM"]), DataFrame(stream_id, b"more"))


def send_trailers(bench: Bench, stream_id: int) -> None:
    bench.feed(bench.headers(stream_id, [(b"grpc-status", b"0")], end_stream=True))


def send_more_than_the_window(bench: Bench, stream_id: int) -> None:
    bench.feed(DataFrame(stream_id, bytes(16 * KIB)), DataFrame(stream_id, bytes(16 * KIB)))


MADE_YOU_RESET = pytest.mark.parametrize(
    "provoke",
    [
        overflow_the_window,
        add_nothing_to_the_window,
        send_behind_the_end,
        send_trailers,
        send_more_than_the_window,
    ],
)
SMALL_WINDOW = TunnelSettings(stream_window=16 * KIB, connection_window=64 * MIB)


@MADE_YOU_RESET
def test_made_you_reset(provoke: Callable[[Bench, int], None]) -> None:
    bench = Bench(settings=SMALL_WINDOW)
    for number in range(per_window(Abuse.MADE_YOU_RESET) + 1):
        assert not bench.wire.closed
        stream, tray = bench.accept(2 * number + 1)
        bench.tunnel.release_slot()
        tray.full = True
        provoke(bench, stream.id)
        assert tray.resets
    bench.assert_tripped(Abuse.MADE_YOU_RESET)


@MADE_YOU_RESET
def test_a_server_can_make_us_reset_too(provoke: Callable[[Bench, int], None]) -> None:
    bench = Bench(client=True, settings=SMALL_WINDOW)
    for _ in range(per_window(Abuse.MADE_YOU_RESET) + 1):
        assert not bench.wire.closed
        stream, tray = bench.established()
        tray.full = True
        provoke(bench, stream.id)
        assert tray.resets
    bench.assert_tripped(Abuse.MADE_YOU_RESET)


def test_made_you_reset_below_the_rate_ends_with_the_budget_of_an_hour() -> None:
    bench = Bench()
    for number in range(LIMITS.budgets[Abuse.MADE_YOU_RESET].per_hour + 1):
        assert not bench.wire.closed
        bench.now += 1.0
        stream, _ = bench.accept(2 * number + 1)
        bench.tunnel.release_slot()
        overflow_the_window(bench, stream.id)
    bench.assert_tripped(Abuse.MADE_YOU_RESET)


def test_header_blocks_on_ended_streams_are_counted_for_the_resets_they_cause() -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed(RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    flood(
        bench,
        lambda: bench.headers(1, CONNECT),
        per_window(Abuse.MADE_YOU_RESET),
        Abuse.MADE_YOU_RESET,
    )


def test_our_own_resets_are_not_held_against_the_peer() -> None:
    """Refusals and the applications' resets, with what was under way to them when they were sent."""
    bench = Bench()
    for number in range(0, 500, 2):
        refused = bench.request(2 * number + 1)
        bench.tunnel.respond(refused, REFUSED, end_stream=True)
        bench.tunnel.release_slot()
        stream, _ = bench.accept(2 * number + 3)
        stream.abort(ErrorCode.CONNECT_ERROR)
        bench.tunnel.release_slot()
        for late in (refused.id, stream.id):
            bench.feed(
                DataFrame(late, bytes(4 * KIB)),
                WindowUpdateFrame(late, window_increment=1),
                DataFrame(late, flags=["END_STREAM"]),
                RstStreamFrame(late, error_code=ErrorCode.CANCEL),
            )
    bench.assert_healthy()


# -- PING and SETTINGS (CVE-2019-9512, CVE-2019-9515) ------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("flags", [[], ["ACK"]], ids=["ping", "pong"])
def test_ping_flood(client: bool, flags: list[str]) -> None:
    bench = Bench(client=client)
    flood(
        bench,
        lambda: PingFrame(0, opaque_data=b"floodfld", flags=flags),
        per_window(Abuse.PING),
        Abuse.PING,
    )


@ROLES
def test_busy_pings_every_ten_seconds_are_answered(client: bool) -> None:
    bench = Bench(client=client)
    for number in range(1_000):
        bench.now += 10.0
        payload = number.to_bytes(8, "big")
        bench.feed(PingFrame(0, opaque_data=payload))
        (pong,) = bench.sent()
        assert pong.opaque_data == payload
        assert pong.flags == {"ACK"}
    bench.assert_healthy()


@ROLES
def test_settings_flood(client: bool) -> None:
    bench = Bench(client=client, acknowledge=False)
    flood(
        bench,
        lambda: SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 70_000}),
        per_window(Abuse.SETTINGS) - 1,  # the greeting was one
        Abuse.SETTINGS,
    )


@ROLES
def test_settings_acknowledgements_are_counted_too(client: bool) -> None:
    bench = Bench(client=client, acknowledge=False)
    flood(
        bench,
        lambda: SettingsFrame(0, flags=["ACK"]),
        per_window(Abuse.SETTINGS) - 1,
        Abuse.SETTINGS,
    )


@ROLES
def test_a_peer_that_tunes_its_settings_every_second_is_served(client: bool) -> None:
    bench = Bench(client=client)
    for number in range(500):
        bench.now += 1.0
        size = 65_535 + number % 2
        bench.feed(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: size}))
        (ack,) = bench.sent()
        assert ack.flags == {"ACK"}
    bench.assert_healthy()


# -- empty DATA (CVE-2019-9518) ----------------------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("padding", [0, 8])
def test_empty_data_flood(client: bool, padding: int) -> None:
    bench = Bench(client=client)
    stream, _ = bench.established() if client else bench.accept(1)
    flags = ["PADDED"] if padding else []
    flood(
        bench,
        lambda: DataFrame(stream.id, pad_length=padding, flags=flags),
        per_window(Abuse.EMPTY_DATA),
        Abuse.EMPTY_DATA,
    )


@ROLES
def test_ends_of_a_stream_that_has_ended_are_counted(client: bool) -> None:
    bench = Bench(client=client)
    stream, _ = bench.established() if client else bench.accept(1)
    bench.feed(RstStreamFrame(stream.id, error_code=ErrorCode.CANCEL))
    for _ in range(4):
        bench.feed(DataFrame(stream.id, flags=["END_STREAM"]))
    flood(
        bench,
        lambda: DataFrame(stream.id, flags=["END_STREAM"]),
        per_window(Abuse.GLITCH),
        Abuse.GLITCH,
    )


def test_a_thousand_ends_of_a_thousand_streams_are_no_empty_data_flood() -> None:
    bench = Bench()
    for number in range(1_000):
        stream, tray = bench.accept(2 * number + 1)
        stream.offer_end()
        bench.feed(DataFrame(stream.id, flags=["END_STREAM"]))
        assert tray.closed == 1
        bench.tunnel.release_slot()
    bench.assert_healthy()


# -- WINDOW_UPDATE -----------------------------------------------------------------------------------------------


@ROLES
def test_stream_zero_window_update_flood(client: bool) -> None:
    bench = Bench(client=client)
    flood(
        bench,
        lambda: WindowUpdateFrame(0, window_increment=1),
        per_window(Abuse.WINDOW_UPDATE),
        Abuse.WINDOW_UPDATE,
    )


@ROLES
def test_window_update_flood_on_a_stream(client: bool) -> None:
    bench = Bench(client=client)
    stream, _ = bench.established() if client else bench.accept(1)
    flood(
        bench,
        lambda: WindowUpdateFrame(stream.id, window_increment=1),
        per_window(Abuse.WINDOW_UPDATE) + 1,  # each stream excuses one
        Abuse.WINDOW_UPDATE,
    )


def test_window_updates_for_ended_streams_are_counted() -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed(RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    flood(
        bench,
        lambda: WindowUpdateFrame(1, window_increment=1),
        per_window(Abuse.WINDOW_UPDATE) + 1,
        Abuse.WINDOW_UPDATE,
    )


def test_data_dribble() -> None:
    """CVE-2019-9511: a window of one byte at a time would make us send a frame for every byte."""
    bench = Bench(peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    stream, _ = bench.accept(1)
    stream.offer(memoryview(bytes(10_000)))
    for _ in range(3 * per_window(Abuse.WINDOW_UPDATE)):
        bench.feed(WindowUpdateFrame(1, window_increment=1))
    bench.assert_tripped(Abuse.WINDOW_UPDATE)


@ROLES
def test_a_peer_that_credits_every_four_kilobytes_is_served(client: bool) -> None:
    """As Go's client and server do, for the stream and for the connection."""
    bench = Bench(client=client)
    stream, _ = bench.established() if client else bench.accept(1)
    for _ in range(2_000):
        stream.offer(memoryview(bytes(32 * KIB)))
        for _ in range(8):
            bench.feed(
                WindowUpdateFrame(0, window_increment=4 * KIB),
                WindowUpdateFrame(stream.id, window_increment=4 * KIB),
            )
    assert stream.bytes_sent == 2_000 * 32 * KIB
    bench.assert_healthy()


@ROLES
def test_a_peer_that_enlarges_its_windows_meanwhile_is_served(client: bool) -> None:
    """A receiver that measures the path grants far more than it was sent, then goes on in small steps."""
    bench = Bench(client=client)
    stream, _ = bench.established() if client else bench.accept(1)
    stream.offer(memoryview(bytes(8 * KIB)))
    bench.feed(
        WindowUpdateFrame(0, window_increment=1 << 30),
        WindowUpdateFrame(stream.id, window_increment=1 << 30),
    )
    for _ in range(1_000):
        stream.offer(memoryview(bytes(8 * KIB)))
        bench.feed(
            WindowUpdateFrame(0, window_increment=8 * KIB),
            WindowUpdateFrame(stream.id, window_increment=8 * KIB),
        )
    bench.assert_healthy()


def test_a_peer_that_sizes_the_window_of_each_stream_by_an_update_is_served() -> None:
    bench = Bench()
    for number in range(1_000):
        stream, _ = bench.accept(2 * number + 1)
        bench.feed(
            WindowUpdateFrame(stream.id, window_increment=MIB),
            DataFrame(stream.id, b"request", flags=["END_STREAM"]),
        )
        stream.offer_end()
        bench.tunnel.release_slot()
    bench.assert_healthy()


# -- CONTINUATION (CVE-2024-27316) and header lists (CVE-2016-6581, CVE-2026-47774) ------------------------------


def in_pieces(bench: Bench, stream_id: int, fields: Fields, size: int) -> list[Frame]:
    block = bench.encoder.encode(list(fields))
    pieces = [block[start : start + size] for start in range(0, len(block), size)]
    frames: list[Frame] = [HeadersFrame(stream_id, data=pieces[0])]
    frames += [ContinuationFrame(stream_id, data=piece) for piece in pieces[1:]]
    frames[-1].flags.add("END_HEADERS")
    return frames


@ROLES
@pytest.mark.parametrize("size", [0, 1, 100], ids=["empty", "tiny", "small"])
def test_continuation_flood(client: bool, size: int) -> None:
    bench = Bench(client=client)
    stream_id = bench.open()[0].id if client else 1
    bench.feed(HeadersFrame(stream_id, data=b""))
    flood(
        bench,
        lambda: ContinuationFrame(stream_id, data=bytes(size)),
        LIMITS.continuation_frames - 1,
        Abuse.CONTINUATION,
    )


def test_a_request_in_as_many_frames_as_allowed_is_served() -> None:
    bench = Bench()
    fields = [*CONNECT, (b"baggage", b"k8s.namespace.name=" + b"x" * 500)]
    for stream_id in (1, 3, 5):
        frames = in_pieces(bench, stream_id, fields, 30)
        assert 10 < len(frames) <= LIMITS.continuation_frames
        bench.feed(*frames)
        assert bench.owner.requests[-1][1] == fields
        fields[-1] = (b"baggage", b"k8s.namespace.name=" + bytes([stream_id + 96]) * 500)
    bench.assert_healthy()


@ROLES
def test_header_list_larger_than_advertised(client: bool) -> None:
    bench = Bench(client=client, acknowledge=False)  # the peer may still use its dynamic table
    stream_id = bench.open()[0].id if client else 1
    limit = 16 * KIB if client else 64 * KIB
    start = OK if client else CONNECT
    bomb = (b"x" * 100, b"y" * 3_900)
    fields = [*start, bomb, *[bomb] * (limit // 4_000)]  # the repetitions are one byte each on the wire
    frame = bench.headers(stream_id, fields)
    assert len(frame.data) < 5_000
    bench.feed(frame)
    bench.assert_tripped(Abuse.HEADER_LIST)


@ROLES
def test_too_many_header_fields(client: bool) -> None:
    bench = Bench(client=client)
    stream_id = bench.open()[0].id if client else 1
    limit = TunnelSettings().max_header_fields
    start = OK if client else CONNECT
    crumbs = [(b"cookie", b"a=%d" % number) for number in range(limit + 1 - len(start))]
    bench.feed(bench.headers(stream_id, [*start, *crumbs]))
    bench.assert_tripped(Abuse.HEADER_LIST)


@ROLES
def test_a_header_block_that_is_all_encoding_and_no_headers(client: bool) -> None:
    """Table size updates are a byte each, cost decoder time and add nothing to the header list."""
    bench = Bench(client=client)
    stream_id = bench.open()[0].id if client else 1
    size = LIMITS.header_block_bytes // 2
    bench.feed(
        HeadersFrame(stream_id, data=b"\x20" * size), ContinuationFrame(stream_id, data=b"\x20" * size)
    )
    assert not bench.wire.closed
    bench.feed(ContinuationFrame(stream_id, data=b"\x20"))
    bench.assert_tripped(Abuse.HEADER_LIST)


@ROLES
def test_large_header_blocks_one_after_the_other(client: bool) -> None:
    """Each is within the limits; decoding them all would take the event loop from everybody else."""
    bench = Bench(client=client)
    size = 3 * LIMITS.large_header_bytes
    fields = [*(OK if client else CONNECT), (b"baggage", b"a" * size)]
    sent = 0
    while not bench.wire.closed:
        stream_id = bench.open()[0].id if client else 2 * sent + 1
        bench.feed(bench.headers(stream_id, fields))
        bench.tunnel.release_slot()
        sent += 1
    bench.assert_tripped(Abuse.LARGE_HEADERS)
    block = len(bench.headers(1, fields).data)
    assert sent == per_window(Abuse.LARGE_HEADERS) // (block // LIMITS.large_header_bytes) + 1


@ROLES
def test_headers_up_to_the_limits_are_served(client: bool) -> None:
    bench = Bench(client=client)
    settings = TunnelSettings()
    start = list(OK if client else CONNECT)
    size = settings.client_header_list_size if client else settings.server_header_list_size
    size -= sum(len(name) + len(value) + 32 for name, value in start)
    number = settings.max_header_fields - len(start)
    each = size // number - 32 - 5
    fields = start + [(b"name%d" % (index % 10), b"v" * each) for index in range(number)]
    if client:
        stream, tray = bench.open()
        bench.feed(bench.headers(stream.id, fields))
        assert tray.answers == [fields]
    else:
        bench.feed(bench.headers(1, fields))
        assert bench.owner.requests[-1][1] == fields
    bench.assert_healthy()


# -- unsent control bytes (CVE-2019-9512 and its family) ---------------------------------------------------------


@ROLES
def test_replies_that_pile_up_for_a_peer_that_never_reads(client: bool) -> None:
    """Slowly enough for every other budget."""
    bench = Bench(client=client)
    bench.tunnel.transport_congested()
    piled = 0
    while piled <= LIMITS.unsent_control_bytes:
        assert not bench.wire.closed
        bench.now += 0.02
        bench.feed(PingFrame(0, opaque_data=b"patience"))
        piled += 17
    bench.assert_tripped(Abuse.UNSENT_CONTROL)


def test_refusals_that_pile_up_for_a_peer_that_never_reads() -> None:
    bench = Bench()
    bench.tunnel.transport_congested()
    for number in range(LIMITS.unsent_control_bytes // 14 + 1):
        if bench.wire.closed:
            break
        stream = bench.request(2 * number + 1)
        bench.tunnel.respond(stream, REFUSED, end_stream=True)
        bench.tunnel.release_slot()
    bench.assert_tripped(Abuse.UNSENT_CONTROL)


@ROLES
def test_a_peer_that_reads_in_the_end_gets_all_replies(client: bool) -> None:
    bench = Bench(client=client)
    for _ in range(20):
        bench.tunnel.transport_congested()
        for _ in range(1_000):
            bench.now += 0.02
            bench.feed(PingFrame(0, opaque_data=b"patience"))
        bench.tunnel.transport_drained()
        assert len(bench.sent()) == 1_000
    bench.assert_healthy()


# -- streams that are opened and never read ----------------------------------------------------------------------


def test_stalled_streams() -> None:
    settings = TunnelSettings(stall_timeout=30.0, stalled_allowed=0, ping_interval=1e9)
    bench = Bench(settings=settings, peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: 100})
    trays = []
    for number in range(per_window(Abuse.STALLED_STREAM) + 1):
        stream, tray = bench.accept(2 * number + 1)
        stream.offer(memoryview(bytes(101)))
        trays.append(tray)
    bench.sent()
    bench.now += 29.0
    bench.tunnel.tick(bench.now)
    assert bench.sent() == []
    bench.now += 1.0
    bench.tunnel.tick(bench.now)
    assert all(tray.resets[0][0] == ErrorCode.CANCEL for tray in trays)
    bench.assert_tripped(Abuse.STALLED_STREAM)


def test_a_few_consumers_may_pause_for_as_long_as_they_like() -> None:
    """TCP would wait for them; only more of them than a tunnel can afford is abuse. The oldest go first."""
    settings = TunnelSettings(stall_timeout=30.0, stalled_allowed=3, ping_interval=1e9)
    bench = Bench(settings=settings, peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: 100})
    trays = []
    for number in range(5):
        stream, tray = bench.accept(2 * number + 1)
        stream.offer(memoryview(bytes(101)))
        bench.now += 1.0
        bench.tunnel.tick(bench.now)
        trays.append(tray)
    bench.now += 3600.0
    bench.tunnel.tick(bench.now)
    assert [bool(tray.resets) for tray in trays] == [True, True, False, False, False]
    bench.assert_healthy()


def test_a_trickle_of_payload_does_not_excuse_a_stream_that_is_not_read() -> None:
    bench = Bench(
        settings=TunnelSettings(stall_timeout=30.0, stalled_allowed=0),
        peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: 100},
    )
    stream, tray = bench.accept(1)
    stream.offer(memoryview(bytes(101)))
    for _ in range(30):
        assert not tray.resets
        bench.now += 1.0
        bench.feed(DataFrame(1, b"."))
        bench.tunnel.tick(bench.now)
    assert tray.resets[0][0] == ErrorCode.CANCEL
    assert resets(bench.sent()) == [(1, ErrorCode.CANCEL)]
    bench.assert_healthy()


def test_a_slow_reader_is_not_stalled() -> None:
    bench = Bench(
        settings=TunnelSettings(stall_timeout=30.0, stalled_allowed=0, ping_interval=1e9),
        peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1_000},
    )
    stream, tray = bench.accept(1)
    for _ in range(200):
        stream.offer(memoryview(bytes(1_000)))
        bench.now += 20.0
        bench.tunnel.tick(bench.now)
        bench.feed(WindowUpdateFrame(1, window_increment=1_000), WindowUpdateFrame(0, window_increment=1_000))
    assert not tray.over
    assert stream.bytes_sent == 200_000
    bench.assert_healthy()


def test_streams_that_wait_for_a_slow_transport_are_not_stalled() -> None:
    """Their windows are open; a tick that falls between two writes must not take them for stalled."""
    bench = Bench(settings=TunnelSettings(stall_timeout=30.0, stalled_allowed=0))
    bench.tunnel.transport_congested()
    trays = []
    for number in range(150):
        stream, tray = bench.accept(2 * number + 1)
        stream.offer(memoryview(b"x"))
        trays.append(tray)
    bench.now += 31.0
    bench.tunnel.congested = False
    bench.feed(PingFrame(0, opaque_data=b"i'm here"))
    bench.tunnel.tick(bench.now)
    assert not any(tray.over for tray in trays)
    bench.tunnel.transport_drained()
    assert all(tray.drained for tray in trays)
    bench.assert_healthy()


# -- streams beyond the limit ------------------------------------------------------------------------------------


def test_refused_streams() -> None:
    settings = TunnelSettings(max_concurrent_streams=10)
    bench = Bench(settings=settings)
    for number in range(10):
        bench.accept(2 * number + 1)
    ids = iter(range(21, 1 << 20, 2))
    flood(
        bench,
        lambda: bench.headers(next(ids), CONNECT),
        per_window(Abuse.REFUSED_STREAM),
        Abuse.REFUSED_STREAM,
    )


def test_a_burst_beyond_the_limit_is_refused_and_nothing_else_happens() -> None:
    bench = Bench()
    allowed = TunnelSettings().max_concurrent_streams
    for number in range(allowed + 500):
        bench.feed(bench.headers(2 * number + 1, CONNECT))
    assert len(bench.owner.requests) == allowed
    assert resets(bench.sent()) == [
        (2 * number + 1, ErrorCode.REFUSED_STREAM) for number in range(allowed, allowed + 500)
    ]
    for _ in range(allowed):
        bench.tunnel.release_slot()
    stream, tray = bench.accept(2 * (allowed + 500) + 1)
    bench.feed(DataFrame(stream.id, b"hello"))
    assert tray.taken == b"hello"
    assert not bench.owner.trips


# -- senseless frames --------------------------------------------------------------------------------------------


def unknown_frame(body: bytes) -> Frame:
    frame = ExtensionFrame(type=0xBE, stream_id=0, body=body)
    frame.body_len = len(body)  # hyperframe sets it on reading only
    return frame


GLITCHES: dict[str, Callable[[], Frame]] = {
    "unknown": lambda: unknown_frame(b"grease"),
    "altsvc": lambda: AltSvcFrame(0, origin=b"example.com", field=b"h2"),
    "priority": lambda: PriorityFrame(1, depends_on=0, stream_weight=200),
    "goaway": lambda: GoAwayFrame(0, last_stream_id=2**31 - 1, error_code=0),
}


@ROLES
@pytest.mark.parametrize("kind", GLITCHES)
def test_glitches(client: bool, kind: str) -> None:
    bench = Bench(client=client)
    flood(bench, GLITCHES[kind], per_window(Abuse.GLITCH), Abuse.GLITCH)


def test_resets_of_ended_streams_are_glitches() -> None:
    bench = Bench()
    bench.accept(1)
    bench.feed(RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    for _ in range(4):
        bench.feed(RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    flood(
        bench,
        lambda: RstStreamFrame(1, error_code=ErrorCode.CANCEL),
        per_window(Abuse.GLITCH),
        Abuse.GLITCH,
    )


def test_interim_answers_without_end_are_glitches() -> None:
    bench = Bench(client=True)
    stream, tray = bench.open()
    flood(
        bench,
        lambda: bench.headers(stream.id, [(b":status", b"103"), (b"link", b"</x>")]),
        per_window(Abuse.GLITCH),
        Abuse.GLITCH,
    )
    assert tray.answers == []


@ROLES
def test_a_peer_with_grease_and_priorities_is_served(client: bool) -> None:
    """Browsers and some proxies send both on every stream they open, and take their time for it."""
    bench = Bench(client=client)
    for _ in range(200):
        bench.now += 0.1
        bench.feed(GLITCHES["unknown"](), GLITCHES["priority"](), GLITCHES["altsvc"]())
    bench.assert_healthy()


@ROLES
def test_the_end_of_a_window_restores_the_budgets(client: bool) -> None:
    bench = Bench(client=client)
    for _ in range(50):
        for _ in range(per_window(Abuse.GLITCH)):
            bench.feed(GLITCHES["unknown"]())
        for _ in range(per_window(Abuse.PING)):
            bench.feed(PingFrame(0, opaque_data=b"same sec"))
        bench.now += SECOND
    bench.assert_healthy()


def test_a_trip_takes_the_streams_with_it_and_tells_their_owners() -> None:
    bench = Bench()
    trays = [bench.accept(2 * number + 1)[1] for number in range(10)]
    for _ in range(per_window(Abuse.PING) + 1):
        bench.feed(PingFrame(0, opaque_data=b"floodfld"))
    assert [tray.resets[0][0] for tray in trays] == [ErrorCode.ENHANCE_YOUR_CALM] * 10
    goaway = of(GoAwayFrame, bench.sent())[-1]
    assert goaway.last_stream_id == 19
    assert b"ping" in goaway.additional_data
