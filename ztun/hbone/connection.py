"""One tunnel: the HTTP/2 connection between two proxies, as calls in and bytes out.

1. ``receive`` takes decrypted bytes; payload reaches the sinks of its streams before it returns.
2. Everything to be sent is given to ``output`` in order, whoever asks for it.
3. ``tick`` is called about once a second; it sends PING, notices a dead peer and stalled streams.
4. Streams and both flow-control windows are kept here. ``FrameReader`` splits what comes; ``Exchange`` reads header
   blocks, ``ControlFrames`` the rest, with the ``h2`` package for the preface, SETTINGS and PING alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.hbone.control import ControlPlane
from ztun.hbone.control_frames import MIN_CREDIT_PER_UPDATE, ControlFrames
from ztun.hbone.exchange import Exchange
from ztun.hbone.guard import Abuse, FloodGuard, GuardLimits, GuardTripped
from ztun.hbone.headers import encode_headers
from ztun.hbone.reader import FrameReader, ProtocolViolation
from ztun.hbone.settings import (
    ASSUMED_PEER_STREAMS,
    DEFAULT_MAX_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    TunnelSettings,
)
from ztun.hbone.stream import StreamOwner, TunnelStream
from ztun.hbone.wire import (
    MAX_STREAM_ID,
    ErrorCode,
    goaway,
    headers_frame,
    rst_stream,
    window_update,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztun.hbone.holdings import Holdings
    from ztun.hbone.roles import ConnectionOwner, Output

_LATE_FRAMES_PER_STREAM = (
    4  # what may cross the end of a stream: RST_STREAM, END_STREAM, a WINDOW_UPDATE, one to spare
)

STOPPED_SECONDS = 5.0  # a reader that has not caught up for so long has stopped, where memory is short


class TunnelConnection:
    """The state of one tunnel; ``client`` is the end that opens streams.

    ``peer_streams`` is how many streams the peer allows at once. ``draining`` is true when no new stream may be
    opened (GOAWAY in either direction, stream ids used up). ``holdings`` are shared by all tunnels of a process.
    """

    def __init__(
        self,
        output: Output,
        owner: ConnectionOwner,
        *,
        client: bool,
        now: float,
        settings: TunnelSettings,
        limits: GuardLimits,
        holdings: Holdings,
    ) -> None:
        self.client = client
        self.output = output
        self.owner = owner
        self.settings = settings
        self.guard = FloodGuard(limits)
        self.streams: dict[int, TunnelStream] = {}
        self.waiting: dict[TunnelStream, None] = {}
        self.closed = False
        self.congested = False
        self.draining = False
        self.ready = False
        self.peer_streams = ASSUMED_PEER_STREAMS
        self.peer_max_frame = DEFAULT_MAX_FRAME_BYTES
        self.peer_stream_window = DEFAULT_WINDOW_BYTES
        self.send_window = DEFAULT_WINDOW_BYTES
        self.recv_window = max(settings.connection_window, DEFAULT_WINDOW_BYTES)
        self.holdings = holdings
        self.held = 0
        self.credit_due = 0
        self.stream_credit_due = 0
        # a quarter of the window: few updates, and never a sender that waits for one that is not due
        self.stream_credit_threshold = settings.stream_window // 4
        self._credit_threshold = settings.connection_window // 4
        self._owed = 0
        self._debt = 0
        self._late_frames = 0
        self.reads = 0
        self._next_stream = 1
        self._final_goaway_at: float | None = None
        self._unsent_control = 0
        self._now = now
        self.received_at = now
        plane = ControlPlane(settings, client_side=client)
        self.control = ControlFrames(self, plane)
        self.exchange = Exchange(self)
        self._reader = FrameReader(self, server=not client)
        output.append(plane.preface())
        if settings.connection_window > DEFAULT_WINDOW_BYTES:
            output.append(window_update(0, settings.connection_window - DEFAULT_WINDOW_BYTES))

    # -- opening and answering streams -----------------------------------------------------------------------

    @property
    def free_streams(self) -> int:
        """How many more streams the peer takes now."""
        return 0 if self.draining or self.closed else max(0, self.peer_streams - len(self.streams))

    def open_stream(self, headers: Iterable[tuple[bytes, bytes]], owner: StreamOwner) -> TunnelStream:
        """Send a CONNECT request. The caller has checked ``free_streams``."""
        stream_id = self._next_stream
        self._next_stream += 2
        if self._next_stream > MAX_STREAM_ID:
            self.draining = True
        self.output.append(headers_frame(stream_id, encode_headers(headers), end_stream=False))
        return self.add_stream(stream_id, owner)

    def respond(
        self, stream: TunnelStream, headers: Iterable[tuple[bytes, bytes]], *, end_stream: bool
    ) -> None:
        """Answer a CONNECT request; ``end_stream`` refuses it."""
        if stream.closed:
            return
        stream.answered = True
        answer = headers_frame(stream.id, encode_headers(headers), end_stream=end_stream)
        if end_stream:
            stream.local_ended = stream.end_offered = True
            # the request is refused, so what the client still sends is of no use (RFC 9113 section 8.1)
            if not stream.remote_ended:
                answer += rst_stream(stream.id, ErrorCode.NO_ERROR)
            self.close_stream(stream)
        self.reply(answer)

    def release_slot(self) -> None:
        """A request's work has ended. Only this, not the end of the stream, frees its slot."""
        self.exchange.slots -= 1

    # -- received bytes --------------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> None:
        """Take decrypted bytes; violations close the tunnel, nothing is raised."""
        if self.closed:
            return
        self._now = self.received_at = now
        self.reads += 1
        try:
            self._reader.feed(data)
        except ProtocolViolation as violation:
            self.terminate(violation.code, str(violation))
        except GuardTripped as trip:
            self._tripped(trip)

    def count(self, abuse: Abuse) -> None:
        """Count one frame against the peer's budget."""
        self.guard.count(abuse, self._now)

    def count_empty_data(self) -> None:
        """A DATA frame without payload that ends no stream is work for nothing."""
        self.count(Abuse.EMPTY_DATA)

    def frame_without_stream(self, stream_id: int, length: int = 0) -> None:
        """A frame for a stream we do not have: late if it existed, an error of the connection if it never did.

        Every stream that ended excuses a few late frames without payload; more of them are a glitch each. Payload
        may be late up to a whole window, in frames of any size.
        """
        self.check_not_idle(stream_id)
        if length:
            return
        if self._late_frames > 0:
            self._late_frames -= 1
        else:
            self.count(Abuse.GLITCH)

    def add_stream(self, stream_id: int, owner: StreamOwner) -> TunnelStream:
        """A stream that either side has opened."""
        stream = self.streams[stream_id] = TunnelStream(self, stream_id, owner)
        # a peer may size the window of each stream with an update of its own instead of by SETTINGS
        self.stream_credit_due = max(0, self.stream_credit_due) + MIN_CREDIT_PER_UPDATE
        return stream

    # -- flow control ----------------------------------------------------------------------------------------

    def credit_connection(self, size: int) -> None:
        """Return the connection credit of payload that was delivered, or may be held."""
        self._owed += size
        if self._owed >= self._credit_threshold:
            self.recv_window += self._owed
            self.reply(window_update(0, self._owed))
            self._owed = 0

    def credit_stream(self, stream: TunnelStream) -> None:
        """Return the credit that a stream has earned by delivery."""
        if not stream.remote_ended and not stream.closed:
            stream.recv_window += stream.owed
            self.reply(window_update(stream.id, stream.owed))
            stream.owed = 0

    def hold(self, stream: TunnelStream, size: int) -> None:
        """Payload waits for its stream's other side; above the limit its connection credit waits with it."""
        if not stream.held:
            stream.held_since = self._now
        stream.held += size
        self.held += size
        self.holdings.total += size
        if self.held > self.settings.held_limit or self.holdings.large:
            self._debt += size
        else:
            self.credit_connection(size)
        # who waits for a moment only, as behind a slow disk, holds less; who has stopped longer ago is found by tick
        if self.holdings.too_large and stream.held > self.settings.stream_window // 2:
            self._drop_held(stream)

    def release_held(self, size: int) -> None:
        """Held payload was delivered or dropped."""
        self.held -= size
        self.holdings.total -= size
        self._repay(min(size, self._debt))
        self._repay_what_is_bearable()

    def _repay_what_is_bearable(self) -> None:
        """Return the credit of payload that still waits, as far as it may by now."""
        if self._debt and not self.holdings.large:
            self._repay(self._debt - max(0, self.held - self.settings.held_limit))

    def _repay(self, due: int) -> None:
        if due > 0:
            self._debt -= due
            self.credit_connection(due)

    def wait_for_room(self, stream: TunnelStream) -> None:
        """Call ``try_resume`` of the stream when a window or the transport opens."""
        if stream not in self.waiting and not stream.closed:
            stream.stalled_since = self._now
            self.waiting[stream] = None

    def transport_congested(self) -> None:
        """The transport has more unsent bytes than it likes."""
        self.congested = True
        self._unsent_control = 0

    def transport_drained(self) -> None:
        """The transport takes bytes again."""
        self.congested = False
        self.resume_waiting()

    def resume_waiting(self) -> None:
        """A window or the transport has opened: the streams that waited for it go on."""
        for stream in list(self.waiting):
            if self.congested or self.send_window <= 0:
                return
            if stream in self.waiting:  # what another one resumed may have ended it
                stream.try_resume()

    # -- ends of streams -------------------------------------------------------------------------------------

    def close_stream(self, stream: TunnelStream) -> None:
        """Both directions ended in order."""
        self._remove(stream)
        stream.discard()
        if stream.sink is None:
            stream.release()
        self.owner.stream_closed()

    def reset_stream(self, stream: TunnelStream, code: int) -> None:
        """Send RST_STREAM on our own account."""
        self.close_stream(stream)
        stream.release()
        self.reply(rst_stream(stream.id, code))

    def violate_stream(self, stream: TunnelStream, code: ErrorCode, reason: str) -> None:
        """The peer broke the rules on one stream: reset it and count that it made us do so."""
        self.lose_stream(stream, code, reason)
        self.reply(rst_stream(stream.id, code))
        self.count(Abuse.MADE_YOU_RESET)

    def lose_stream(self, stream: TunnelStream, code: int, reason: str) -> None:
        """A stream ends before its time, at the peer's will or ours; its owner hears why."""
        self._remove(stream)
        stream.lost(code, reason)
        self.owner.stream_closed()

    def _remove(self, stream: TunnelStream) -> None:
        self.streams.pop(stream.id, None)
        self.excuse_late_frames()

    def excuse_late_frames(self) -> None:
        """A stream has ended; what the peer had sent for it may still come."""
        self._late_frames += _LATE_FRAMES_PER_STREAM

    def check_not_idle(self, stream_id: int) -> None:
        """A frame came for a stream that is not there; raises ``ProtocolViolation`` if it never was."""
        ours = bool(stream_id & 1) == self.client
        highest = self._next_stream - 2 if ours else self.exchange.highest
        if stream_id == 0 or (ours and not self.client) or stream_id > highest:
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, f"a frame for stream {stream_id}, which was never opened"
            )

    # -- the end of the connection ---------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """Ask the peer to open no more streams; those under way go on (RFC 9113 section 6.8)."""
        if self.closed or self.draining:
            return
        self.draining = True
        if self.client:
            self.reply(goaway(0, ErrorCode.NO_ERROR))
        else:
            self.reply(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self._final_goaway_at = now + self.settings.drain_round_trip

    def terminate(self, code: ErrorCode, reason: str, *, lost: bool = False) -> None:
        """Send GOAWAY and close at once; every stream is told. ``lost`` says that it is a failure whatever the code."""
        if self.closed:
            return
        # RFC 9113 section 6.8: the last stream id must not rise after an earlier GOAWAY
        last = min(self.exchange.highest, self.exchange.accept_until)
        self.output.append(goaway(last, code, reason.encode()[:256]))
        self._end(ErrorCode.CONNECT_ERROR if lost else code, reason)
        self.output.close()

    def transport_lost(self, reason: str) -> None:
        """The transport is gone without a GOAWAY of ours."""
        if not self.closed:
            self._end(ErrorCode.CONNECT_ERROR, reason)

    def _end(self, code: ErrorCode, reason: str) -> None:
        self.closed = self.draining = True
        streams, self.streams = list(self.streams.values()), {}
        for stream in streams:
            # NO_ERROR says that the connection ends in order; a stream that it takes along does not
            stream.lost(code or ErrorCode.CONNECT_ERROR, reason)
        self.waiting.clear()
        self.owner.connection_closed(code, reason)

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Once a second: keepalive, stalled streams, the second half of a drain."""
        if self.closed:
            return
        self._now = now
        if self._final_goaway_at is not None and now >= self._final_goaway_at:
            self._final_goaway_at = None
            self.exchange.accept_until = self.exchange.highest
            self.reply(goaway(self.exchange.highest, ErrorCode.NO_ERROR))
        if self.control.peer_is_dead(now):
            silence = self.settings.ping_timeout
            self.terminate(ErrorCode.NO_ERROR, f"no answer to PING within {silence:g} s", lost=True)
            return
        if ping := self.control.keep_alive(now):
            self.reply(ping)
        self._reset_stalled(now)
        self._drop_oldest_held(now)
        self._repay_what_is_bearable()  # others may have made room

    def _drop_oldest_held(self, now: float) -> None:
        if not self.holdings.too_large:
            return
        stopped = [
            one for one in self.streams.values() if one.held and now - one.held_since >= STOPPED_SECONDS
        ]
        for stream in sorted(stopped, key=lambda one: one.held_since):
            if self.holdings.too_large:
                self._drop_held(stream)

    def _drop_held(self, stream: TunnelStream) -> None:
        """A stream is not read, and there is no more room for what waits: reset it."""
        reason = (
            f"{self.holdings.most >> 20} MiB wait for readers that have stopped, "
            f"{stream.held >> 10} KiB of them for this one"
        )
        self.lose_stream(stream, ErrorCode.ENHANCE_YOUR_CALM, reason)
        self.reply(rst_stream(stream.id, ErrorCode.ENHANCE_YOUR_CALM))

    def _reset_stalled(self, now: float) -> None:
        limit = self.settings.stall_timeout
        if self.congested or len(self.waiting) <= self.settings.stalled_allowed:
            return
        # a stream whose windows are open only waits for its turn on a slow transport
        stalled = [
            stream
            for stream in self.waiting
            if now - stream.stalled_since >= limit and min(stream.send_window, self.send_window) <= 0
        ]
        stalled.sort(key=lambda stream: stream.stalled_since)
        excess = len(stalled) - self.settings.stalled_allowed
        try:
            for stream in stalled[: max(0, excess)]:
                if stream.closed:
                    continue
                self.lose_stream(stream, ErrorCode.CANCEL, f"the peer granted no window for {limit:g} s")
                self.reply(rst_stream(stream.id, ErrorCode.CANCEL))
                self.count(Abuse.STALLED_STREAM)
        except GuardTripped as trip:
            self._tripped(trip)

    def _tripped(self, trip: GuardTripped) -> None:
        if not self.closed:
            self.owner.guard_tripped(trip.abuse, str(trip))
            self.terminate(ErrorCode.ENHANCE_YOUR_CALM, str(trip))

    def reply(self, frames: bytes) -> None:
        """Send control frames; for a peer that does not read, only so many of them."""
        if self.closed:
            return
        self.output.append(frames)
        if self.congested:
            self._unsent_control += len(frames)
            if self._unsent_control > self.guard.limits.unsent_control_bytes:
                self._tripped(
                    GuardTripped(Abuse.UNSENT_CONTROL, "replies pile up for a peer that does not read")
                )
