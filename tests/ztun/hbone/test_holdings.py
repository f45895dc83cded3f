"""What all tunnels of a process hold together: bounded, and given back to the last byte."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame

from tests.ztun.hbone.rig import Bench, Tray
from ztun.hbone.connection import STOPPED_SECONDS
from ztun.hbone.holdings import Holdings
from ztun.hbone.settings import KIB, MIB, TunnelSettings
from ztun.hbone.stream import TunnelStream
from ztun.hbone.wire import ErrorCode

pytestmark = pytest.mark.unit

CHUNK = 16 * KIB
SETTINGS = TunnelSettings(stream_window=MIB, connection_window=2 * MIB, held_limit=8 * MIB)


def unread(bench: Bench, stream_id: int, size: int = MIB) -> tuple[TunnelStream, Tray]:
    """A stream that is sent so much, as far as the windows go, and that nobody reads."""
    stream, tray = bench.accept(stream_id)
    tray.full = True
    while size and bench.tunnel.recv_window >= CHUNK and not tray.over:
        bench.feed(DataFrame(stream_id, bytes(CHUNK)))
        size -= CHUNK
    return stream, tray


def read(stream: TunnelStream, tray: Tray) -> None:
    tray.full = False
    stream.sink_drained()


def test_many_tunnels_hold_no_more_than_their_windows_when_it_is_much_in_all() -> None:
    holdings = Holdings(limit=4 * MIB, most=64 * MIB)
    benches = [Bench(settings=SETTINGS, holdings=holdings) for _ in range(4)]
    streams = [unread(bench, 2 * number + 1) for bench in benches for number in range(8)]
    assert holdings.total == sum(bench.tunnel.held for bench in benches)
    assert holdings.limit < holdings.total <= holdings.limit + 4 * (SETTINGS.connection_window + CHUNK)
    for stream, tray in streams:
        read(stream, tray)
    assert holdings.total == 0
    for bench in benches:
        assert bench.tunnel.recv_window > SETTINGS.connection_window * 3 // 4
        assert not bench.wire.closed


def test_a_tunnel_gets_its_credit_back_when_others_have_made_room() -> None:
    holdings = Holdings(limit=2 * MIB, most=64 * MIB)
    one, other = Bench(settings=SETTINGS, holdings=holdings), Bench(settings=SETTINGS, holdings=holdings)
    first = [unread(one, 2 * number + 1) for number in range(3)]
    for number in range(3):
        unread(other, 2 * number + 1)
    assert other.tunnel.recv_window < CHUNK
    for stream, tray in first:
        read(stream, tray)
    other.tunnel.tick(other.now)
    assert other.tunnel.recv_window >= SETTINGS.connection_window * 3 // 4
    _, tray = other.accept(99)
    other.feed(DataFrame(99, bytes(CHUNK)))
    assert len(tray.taken) == CHUNK


def test_beyond_all_bounds_a_stream_that_is_not_read_is_reset_and_one_that_is_read_goes_on() -> None:
    holdings = Holdings(limit=MIB, most=3 * MIB)
    benches = [Bench(settings=SETTINGS, holdings=holdings) for _ in range(8)]
    reading = [bench.accept(99) for bench in benches]
    lost = [tray for bench in benches for tray in [unread(bench, 101)[1]] if tray.over]
    assert holdings.total <= holdings.most
    assert lost
    for tray in lost:
        ((code, reason),) = tray.resets
        assert code == ErrorCode.ENHANCE_YOUR_CALM
        assert "readers that have stopped" in reason
    for bench, (_, tray) in zip(benches, reading, strict=True):
        bench.feed(DataFrame(99, bytes(CHUNK)))
        assert len(tray.taken) == CHUNK
        assert not bench.wire.closed


def test_who_stopped_long_ago_makes_room_and_who_waits_for_a_moment_keeps_its_place() -> None:
    holdings = Holdings(limit=MIB, most=3 * MIB)
    hogs = [Bench(settings=SETTINGS, holdings=holdings) for _ in range(8)]
    trays = [unread(bench, 1, MIB // 2)[1] for bench in hogs]
    assert holdings.too_large
    assert not any(tray.over for tray in trays)
    bench = Bench(settings=SETTINGS, holdings=holdings)
    stream, tray = unread(bench, 1, CHUNK)
    early = bench.request(3)
    bench.feed(DataFrame(3, b"before the application is dialled"))
    for one in (bench, *hogs):
        one.now += STOPPED_SECONDS
    read(stream, tray)
    unread_again = bench.now
    tray.full = True
    bench.feed(DataFrame(1, bytes(CHUNK)))
    assert stream.held_since == unread_again
    for one in hogs:
        one.tunnel.tick(one.now)
    assert not holdings.too_large
    assert [bool(tray.resets) for tray in trays] == [True] * 3 + [False] * 5
    assert not tray.over
    assert not early.closed


def test_what_is_delivered_earns_credit_also_while_it_is_much_in_all() -> None:
    """Beside payload of others that waits and had its credit already, a stream that is read goes on for ever."""
    holdings = Holdings(limit=4 * MIB, most=64 * MIB)
    bench, other = Bench(settings=SETTINGS, holdings=holdings), Bench(settings=SETTINGS, holdings=holdings)
    for number in range(4):
        unread(bench, 2 * number + 1)
    unread(other, 1)
    assert holdings.large
    stream, tray = bench.accept(99)
    for _ in range(1_024):
        tray.full = True
        bench.feed(DataFrame(99, bytes(CHUNK)))
        read(stream, tray)
    assert len(tray.taken) == 16 * MIB
    assert not bench.wire.closed


def test_a_connection_that_is_lost_holds_nothing() -> None:
    holdings = Holdings()
    bench = Bench(settings=SETTINGS, holdings=holdings)
    unread(bench, 1)
    assert holdings.total == MIB
    bench.tunnel.transport_lost("gone")
    assert holdings.total == 0
