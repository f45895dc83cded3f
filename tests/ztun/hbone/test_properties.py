"""Two tunnel connections joined by an in-memory pipe, and one under arbitrary bytes.

``ZTUN_FUZZ_EXAMPLES=10000 pytest -m fuzz`` runs the same properties with a larger budget.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ztun.hbone.rig import CONNECT, OK, Answerer, Bench, Fields
from ztun.hbone.connection import TunnelConnection
from ztun.hbone.guard import UNLIMITED, Abuse, Budget, GuardLimits
from ztun.hbone.holdings import Holdings
from ztun.hbone.settings import KIB, TunnelSettings
from ztun.hbone.stream import HEADROOM_BYTES, TunnelStream
from ztun.hbone.wire import CLIENT_PREFACE, ErrorCode

FUZZ_EXAMPLES = int(os.environ.get("ZTUN_FUZZ_EXAMPLES", "2000"))


def budget(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# -- two ends and a pipe -----------------------------------------------------------------------------------------

STREAMS = 4
PIPE_HIGH_BYTES = 4_000
PIPE_LOW_BYTES = 1_000
# windows so small that everything waits for credit all the time
TIGHT = TunnelSettings(
    stream_window=70_000, connection_window=90_000, max_frame_size=16_384, held_limit=50_000
)
TINY_WINDOW = 64


def content(seed: int, start: int, size: int) -> bytes:
    """Bytes that are wrong anywhere else than at their place."""
    return bytes(
        (seed * 89 + position * 7 + position // 251) & 0xFF for position in range(start, start + size)
    )


class Pipe:
    """The ``Output`` of one end: bytes that wait until somebody carries them to the other."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        self.closed = False
        self.sender: TunnelConnection | None = None

    def append(self, chunk: bytes) -> None:
        assert not self.closed, "bytes behind the end of the connection"
        self.waiting += chunk
        sender = self.sender
        if sender is not None and not sender.congested and len(self.waiting) > PIPE_HIGH_BYTES:
            sender.transport_congested()

    def write_through(self, frame: memoryview) -> None:
        self.append(bytes(frame))

    def close(self) -> None:
        self.closed = True

    def carry(self, receiver: TunnelConnection, size: int, now: float) -> None:
        """Take up to ``size`` bytes to the other end."""
        chunk, self.waiting = bytes(self.waiting[:size]), self.waiting[size:]
        receiver.receive(memoryview(chunk), now)
        sender = self.sender
        assert sender is not None
        if sender.congested and len(self.waiting) < PIPE_LOW_BYTES:
            sender.transport_drained()


class Half:
    """One end of one stream: what it sends is known by position, what it gets is checked as it comes."""

    def __init__(self, seed: int, expected_seed: int) -> None:
        self.seed = seed
        self.expected_seed = expected_seed
        self.stream: TunnelStream | None = None
        self.sent = 0
        self.got = 0
        self.may_send = True
        self.paused = False
        self.unread = False
        self.ended = False
        self.end_sent = False
        self.over = False
        self.aborted = False
        self.reset_code: int | None = None
        self.answered = False

    # as the sink of its stream
    def room(self) -> int:
        return 0 if self.paused else 1 << 20

    def offer(self, data: memoryview) -> bool:
        assert not self.ended, "payload behind the end"
        assert not self.over, "payload behind a reset"
        assert bytes(data) == content(self.expected_seed, self.got, len(data))
        self.got += len(data)
        self.unread = self.unread or self.paused
        return not self.paused

    def offer_end(self) -> None:
        assert not self.ended
        self.ended = True

    def abort(self, code: int) -> None:
        raise AssertionError("a stream does not abort its sink")

    # as its source
    def sink_drained(self) -> None:
        assert not self.over
        self.may_send = True

    # as its owner
    def stream_answered(self, stream: TunnelStream, headers: Fields) -> None:
        self.answered = True
        stream.attach(self, self)

    def stream_closed(self, stream: TunnelStream) -> None:
        assert not self.over
        self.over = True

    def stream_reset(self, stream: TunnelStream, code: int, reason: str) -> None:
        assert not self.over
        self.over = True
        self.reset_code = code

    # what the test does with it
    def send(self, size: int, *, in_place: bool, pushy: bool = False) -> None:
        """Send, if the sink has not said stop; a ``pushy`` source has more in its hands at that moment."""
        if self.stream is None or self.over or self.end_sent or self.stream.sink is None:
            return
        if not (self.may_send or pushy):
            return
        data = content(self.seed, self.sent, size)
        if in_place:
            self.may_send = self.stream.offer_in_place(memoryview(bytearray(HEADROOM_BYTES) + data))
        else:
            self.may_send = self.stream.offer(memoryview(data))
        self.sent += size

    def end(self) -> None:
        # not only when the source may send: the end may follow the last payload at once
        if self.stream is not None and not self.over and not self.end_sent and self.stream.sink is not None:
            self.end_sent = True
            self.stream.offer_end()

    def resume(self) -> None:
        self.paused = False
        if self.unread and self.stream is not None:
            self.unread = False
            self.stream.sink_drained()


class ServerEnd(Answerer):
    """Answers a request when it is told to."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def request_received(self, stream: TunnelStream, headers: Fields) -> None:
        super().request_received(stream, headers)
        index = int(dict(headers)[b":authority"])
        half = self.pair.server_halves[index]
        half.stream = stream
        stream.owner = half


class Pair:
    """A client and a server, and the streams between them."""

    def __init__(self, *, tiny_windows: bool) -> None:
        self.now = 10.0
        self.client_pipe, self.server_pipe = Pipe(), Pipe()
        self.client_halves = [Half(2 * index, 2 * index + 1) for index in range(STREAMS)]
        self.server_halves = [Half(2 * index + 1, 2 * index) for index in range(STREAMS)]
        self.client_owner, self.server_owner = Answerer(), ServerEnd(self)
        limits = GuardLimits()
        if tiny_windows:  # whose credit comes in steps that the guard counts: no honest peer has such windows
            limits = GuardLimits(limits.budgets | {Abuse.WINDOW_UPDATE: Budget(UNLIMITED)})
        self.holdings = Holdings()
        window = TINY_WINDOW if tiny_windows else TIGHT.stream_window
        self.settings = TunnelSettings(
            stream_window=window,
            connection_window=TIGHT.connection_window,
            max_frame_size=TIGHT.max_frame_size,
            held_limit=TIGHT.held_limit,
        )
        self.client = TunnelConnection(
            self.client_pipe,
            self.client_owner,
            client=True,
            now=self.now,
            settings=self.settings,
            limits=limits,
            holdings=self.holdings,
        )
        self.server = TunnelConnection(
            self.server_pipe,
            self.server_owner,
            client=False,
            now=self.now,
            settings=self.settings,
            limits=limits,
            holdings=self.holdings,
        )
        self.client_pipe.sender, self.server_pipe.sender = self.client, self.server
        self.exchange()

    def check(self) -> None:
        """What is true at any moment."""
        for tunnel, owner, halves in (
            (self.client, self.client_owner, self.client_halves),
            (self.server, self.server_owner, self.server_halves),
        ):
            assert owner.ends == [], "honest ends fell out with each other"
            assert tunnel.recv_window >= 0
            assert tunnel.held >= 0
            # a stream that ended in order still holds what its sink has not delivered
            assert tunnel.held == sum(half.stream.held for half in halves if half.stream is not None)
            for stream in tunnel.streams.values():
                assert stream.recv_window >= 0
                assert not stream.closed
                assert stream.backlog_bytes == sum(map(len, stream.backlog))
            assert all(stream in tunnel.streams.values() for stream in tunnel.waiting)

    def carry(self, *, to_server: bool, size: int) -> None:
        if to_server:
            self.client_pipe.carry(self.server, size, self.now)
        else:
            self.server_pipe.carry(self.client, size, self.now)

    def exchange(self) -> None:
        """Carry until nothing moves."""
        while self.client_pipe.waiting or self.server_pipe.waiting:
            self.now += 0.01
            self.carry(to_server=True, size=1 << 20)
            self.carry(to_server=False, size=1 << 20)

    def open(self, index: int) -> None:
        half = self.client_halves[index]
        if half.stream is None:
            headers = [(b":method", b"CONNECT"), (b":authority", b"%d" % index)]
            half.stream = self.client.open_stream(headers, half)

    def answer(self, index: int) -> None:
        half = self.server_halves[index]
        if half.stream is not None and not half.answered:
            half.answered = True
            self.server.respond(half.stream, OK, end_stream=False)
            if not half.over:
                half.stream.attach(half, half)

    def reset(self, half: Half) -> None:
        if half.stream is not None and not half.over:
            half.over = half.aborted = True
            half.stream.abort(ErrorCode.CANCEL)

    def finish(self) -> None:
        """Every sink reads, every side ends, every byte arrives."""
        for index in range(STREAMS):
            self.open(index)
        self.exchange()
        for half in self.client_halves + self.server_halves:
            half.resume()
        for index in range(STREAMS):
            self.answer(index)
        self.exchange()
        for half in self.client_halves + self.server_halves:
            half.end()
        self.exchange()
        self.check()
        for here, there in zip(self.client_halves, self.server_halves, strict=True):
            assert here.over
            assert there.over
            if not here.aborted and not there.aborted:
                assert here.sent == there.got
                assert there.sent == here.got
                assert here.reset_code is None
                assert there.reset_code is None
        for tunnel in (self.client, self.server):
            assert not tunnel.streams
            assert not tunnel.waiting
            assert tunnel.held == 0
        # credit for every byte came back, but for what is not yet worth an update
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            assert sender.send_window == receiver.recv_window
            assert receiver.recv_window > receiver.settings.connection_window * 3 // 4


indices = st.integers(0, STREAMS - 1)
either = st.booleans()
sizes = st.one_of(
    st.integers(1, 80),
    st.integers(1, 40_000),
    st.sampled_from([TINY_WINDOW, TIGHT.max_frame_size, TIGHT.stream_window // 2, TIGHT.stream_window]),
)
parts_of_the_wire = st.one_of(st.integers(1, 30), st.integers(1, 5_000), st.just(1 << 20))
steps = st.one_of(
    st.tuples(st.just("open"), indices),
    st.tuples(st.just("answer"), indices),
    st.tuples(st.just("send"), either, indices, sizes, either),
    st.tuples(st.just("send"), either, indices, sizes, either),
    st.tuples(st.just("send"), either, indices, sizes, either),
    st.tuples(st.just("send more"), either, indices, sizes, either),
    st.tuples(st.just("send and end"), either, indices, sizes, either),
    st.tuples(st.just("pause"), either, indices),
    st.tuples(st.just("resume"), either, indices),
    st.tuples(st.just("reset"), either, indices),
    st.tuples(st.just("carry"), either, parts_of_the_wire),
    st.tuples(st.just("carry"), either, parts_of_the_wire),
    st.tuples(st.just("carry"), either, parts_of_the_wire),
)
plans = st.lists(steps, min_size=30, max_size=80)


def drive(plan: list[tuple[Any, ...]], *, established: int, tiny_windows: bool) -> None:
    """Carry out a plan; the first ``established`` streams are open and answered before it starts."""
    pair = Pair(tiny_windows=tiny_windows)
    for index in range(established):
        pair.open(index)
        pair.exchange()
        pair.answer(index)
    pair.exchange()
    for step in plan:
        pair.now += 0.01
        match step:
            case ("open", index):
                pair.open(index)
            case ("answer", index):
                pair.answer(index)
            case ("carry", to_server, size):
                pair.carry(to_server=to_server, size=size)
            case (what, at_client, index, *rest):
                half = (pair.client_halves if at_client else pair.server_halves)[index]
                if what.startswith("send"):
                    size = min(rest[0], 10 * TINY_WINDOW) if tiny_windows else rest[0]
                    half.send(size, in_place=rest[1], pushy=what == "send more")
                    if what == "send and end":
                        half.end()
                elif what == "pause":
                    half.paused = True
                elif what == "resume":
                    half.resume()
                else:
                    pair.reset(half)
        pair.check()
    pair.finish()


@pytest.mark.unit
@budget(120)
@given(plans, st.integers(0, STREAMS))
def test_bytes_arrive_exactly_whatever_the_order(plan: list[tuple[Any, ...]], established: int) -> None:
    drive(plan, established=established, tiny_windows=False)


@pytest.mark.unit
@budget(120)
@given(plans, st.integers(0, STREAMS))
def test_bytes_arrive_exactly_through_tiny_windows(plan: list[tuple[Any, ...]], established: int) -> None:
    drive(plan, established=established, tiny_windows=True)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@budget(FUZZ_EXAMPLES)
@given(st.lists(steps, min_size=30, max_size=300), st.integers(0, STREAMS), either)
def test_bytes_arrive_exactly_fuzz(plan: list[tuple[Any, ...]], established: int, tiny_windows: bool) -> None:
    drive(plan, established=established, tiny_windows=tiny_windows)


# -- anything at all ---------------------------------------------------------------------------------------------

stream_ids = st.sampled_from([0, 1, 2, 3, 5, 7, 99, 2**31 - 1])
numbers = st.one_of(st.integers(0, 20), st.sampled_from([100, 65_535, 2**31 - 1, 2**32 - 1]))
payloads = st.binary(max_size=300)
field_lists = st.lists(
    st.tuples(
        st.sampled_from(
            [b":method", b":authority", b":status", b":path", b"baggage", b"cookie", b"Upper", b""]
        ),
        st.sampled_from([b"CONNECT", b"GET", b"200", b"103", b"host:1", b"", b" x", b"a\nb"]),
    ),
    max_size=5,
)


def raw(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def header_block(bench: Bench, fields: Fields, end_stream: bool, stream_id: int) -> bytes:
    frame = bench.headers(stream_id or 1, fields, end_stream=end_stream)
    return raw(1, 0x4 | end_stream, stream_id, frame.data)


fragments: st.SearchStrategy[Callable[[Bench], bytes]] = st.one_of(
    st.builds(
        lambda *a: lambda bench: raw(*a), st.integers(0, 12), st.integers(0, 255), stream_ids, payloads
    ),
    st.builds(lambda data: lambda bench: data, st.binary(min_size=1, max_size=40)),
    st.builds(
        lambda fields, end, sid: lambda bench: header_block(bench, fields, end, sid),
        field_lists,
        either,
        stream_ids,
    ),
    st.builds(
        lambda end, sid: lambda bench: header_block(bench, OK if bench.tunnel.client else CONNECT, end, sid),
        either,
        stream_ids,
    ),
    st.builds(lambda n, sid: lambda bench: raw(8, 0, sid, n.to_bytes(4, "big")), numbers, stream_ids),
    st.builds(lambda n, sid: lambda bench: raw(3, 0, sid, n.to_bytes(4, "big")), numbers, stream_ids),
    st.builds(
        lambda key, value: lambda bench: raw(4, 0, 0, key.to_bytes(2, "big") + value.to_bytes(4, "big")),
        st.integers(0, 9),
        numbers,
    ),
    st.builds(
        lambda sid, flags, data: lambda bench: raw(0, flags, sid, data),
        stream_ids,
        st.sampled_from([0, 1, 8, 9]),
        payloads,
    ),
)
cuts = st.lists(st.integers(1, 60), max_size=10)


def bombard(client: bool, parts: list[Callable[[Bench], bytes]], chunks: list[int], greet: bool) -> None:
    bench = Bench(client=client, greet=greet)
    if not greet and not client:
        bench.feed_bytes(CLIENT_PREFACE)
    trays = []
    if client and greet:
        trays = [bench.open()[1], bench.established()[1]]
    for part in parts:
        data = part(bench)
        for size in chunks:
            bench.feed_bytes(data[:size])
            data = data[size:]
        bench.feed_bytes(data)
        bench.now += 0.1
        bench.tunnel.tick(bench.now)
        if not client and bench.owner.requests and not bench.tunnel.closed:
            stream, _ = bench.owner.requests[-1]
            if not stream.answered and not stream.closed:
                trays.append(bench.join(stream))
    whole_or_over(bench, client)
    bench.tunnel.transport_lost("the test is over")
    assert len(bench.owner.ends) == 1
    assert all(tray.over for tray in trays)
    assert bench.tunnel.held == 0


def whole_or_over(bench: Bench, client: bool) -> None:
    """Either the connection was ended in order, or it works."""
    tunnel = bench.tunnel
    if tunnel.closed:
        assert bench.wire.closed
        assert len(bench.owner.ends) == 1
        assert not tunnel.streams
        assert not tunnel.waiting
        assert bench.sent()[-1].type == GoAwayFrame.type
    else:
        assert not bench.wire.closed
        assert bench.owner.ends == []
        assert all(not stream.closed for stream in tunnel.streams.values())
        assert all(stream.id in tunnel.streams for stream in tunnel.waiting)
        bench.sent()  # whole frames only, or hyperframe would fail


@pytest.mark.unit
@budget(250)
@given(either, st.lists(fragments, max_size=12), cuts, st.sampled_from([True, True, True, False]))
def test_nothing_that_a_peer_sends_gets_out_of_hand(
    client: bool, parts: list[Callable[[Bench], bytes]], chunks: list[int], greet: bool
) -> None:
    bombard(client, parts, chunks, greet)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@budget(FUZZ_EXAMPLES)
@given(either, st.lists(fragments, max_size=60), cuts, either)
def test_nothing_that_a_peer_sends_gets_out_of_hand_fuzz(
    client: bool, parts: list[Callable[[Bench], bytes]], chunks: list[int], greet: bool
) -> None:
    bombard(client, parts, chunks, greet)


def honest_session(client: bool) -> bytes:
    """What an honest peer sends in a whole connection."""
    bench = Bench(client=client, greet=False)
    frames: list[Frame] = [SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 70_000})]
    frames.append(SettingsFrame(0, flags=["ACK"]))
    for stream_id in (1, 3, 5):
        frames += [
            bench.headers(stream_id, OK if client else [*CONNECT, (b"baggage", b"k8s.namespace.name=a")]),
            DataFrame(stream_id, content(stream_id, 0, 500)),
            DataFrame(stream_id, b"padded", pad_length=7, flags=["PADDED"]),
            WindowUpdateFrame(stream_id, window_increment=500),
            WindowUpdateFrame(0, window_increment=500),
            PriorityFrame(stream_id, depends_on=0, stream_weight=16),
            PingFrame(0, opaque_data=b"are you?"),
        ]
    frames += [
        DataFrame(1, b"last", flags=["END_STREAM"]),
        RstStreamFrame(3, error_code=ErrorCode.CANCEL),
        HeadersFrame(7, data=bench.encoder.encode(list(CONNECT))[:4]),
        ContinuationFrame(7, data=bench.encoder.encode(list(CONNECT)), flags=["END_HEADERS"]),
        PushPromiseFrame(1, promised_stream_id=2, flags=["END_HEADERS"]),
        GoAwayFrame(0, last_stream_id=5, error_code=ErrorCode.NO_ERROR, additional_data=b"bye"),
    ]
    return b"".join(frame.serialize() for frame in frames)


mutations = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "double"]), st.integers(0, 255)
    ),
    max_size=4,
)


def mutate(data: bytes, changes: list[tuple[float, str, int]]) -> bytes:
    for place, kind, value in changes:
        at = int(place * len(data))
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + value % 40 :]
        else:
            data = data[:at] + data[at : at + 40] + data[at:]
        if not data:
            break
    return data


def replay(client: bool, changes: list[tuple[float, str, int]], chunk: int) -> None:
    bench = Bench(client=client, greet=False)
    if client:
        for _ in range(3):
            bench.open()
    data = mutate(honest_session(client), changes)
    if not client:
        data = CLIENT_PREFACE + data
    for start in range(0, len(data), chunk):
        bench.feed_bytes(data[start : start + chunk])
    whole_or_over(bench, client)


@pytest.mark.unit
@budget(200)
@given(either, mutations, st.sampled_from([1, 7, 64, 16 * KIB]))
def test_a_session_with_errors_in_it_gets_nowhere_strange(
    client: bool, changes: list[tuple[float, str, int]], chunk: int
) -> None:
    replay(client, changes, chunk)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@budget(FUZZ_EXAMPLES)
@given(either, mutations, st.integers(1, 3_000))
def test_a_session_with_errors_in_it_gets_nowhere_strange_fuzz(
    client: bool, changes: list[tuple[float, str, int]], chunk: int
) -> None:
    replay(client, changes, chunk)
