"""One tunnel: the HTTP/2 connection between two proxies, as calls in and bytes out.

1. ``receive`` takes decrypted bytes; payload reaches the sinks of its streams before it returns.
2. Everything to be sent is given to ``output`` in order, whoever asks for it.
3. ``tick`` is called about once a second; it sends PING, notices a dead peer and stalled streams.
4. Streams, their header blocks and both flow-control windows are kept here. ``ControlPlane`` (the ``h2`` package)
   sees the preface, SETTINGS and PING.
5. GOAWAY never reaches ``h2``: it would refuse every frame after the first one, and streams that are under way must
   end in peace.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from h2.events import Event, PingAckReceived, RemoteSettingsChanged, SettingsAcknowledged
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from ztun.hbone.control import ControlPlane
from ztun.hbone.guard import Abuse, FloodGuard, GuardLimits, GuardTripped
from ztun.hbone.headers import (
    HeaderBlockError,
    HeaderDecoder,
    HeaderListTooLarge,
    Headers,
    MalformedHeaders,
    check_request,
    check_response,
    encode_headers,
)
from ztun.hbone.reader import FrameReader, ProtocolViolation
from ztun.hbone.settings import (
    ASSUMED_PEER_STREAMS,
    DEFAULT_MAX_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    TunnelSettings,
)
from ztun.hbone.stream import NOBODY, StreamOwner, TunnelStream
from ztun.hbone.wire import (
    CLIENT_PREFACE,
    GOAWAY,
    HEADER_BYTES,
    MAX_STREAM_ID,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_ID_MASK,
    WINDOW_UPDATE,
    ErrorCode,
    error_name,
    goaway,
    headers_frame,
    rst_stream,
    window_update,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_MIN_CREDIT_PER_UPDATE = (
    1024  # a WINDOW_UPDATE is free for this many bytes we sent; smaller steps eat the budget
)
_LATE_FRAMES_PER_STREAM = (
    4  # what may cross the end of a stream: RST_STREAM, END_STREAM, a WINDOW_UPDATE, one to spare
)
_SLOTS_PER_STREAM = 2
"""A stream ends for the peer before its work has ended for us, and the peer may open the next one at once. So the
limit that we advertise binds the streams, and this many times it binds the work behind them (CVE-2025-8671)."""
_FIRST_FINAL_STATUS = 200
_UNTOLD_STREAMS = (
    1024  # what a peer may open before it has read our limit; Envoy's default is as many at once
)
_PING_PAYLOAD = b"ztunping"
_U32 = struct.Struct(">L")


class Output(Protocol):
    """Where the bytes of a tunnel go. The order of calls is the order on the wire."""

    def append(self, chunk: bytes) -> None:
        """Send ``chunk`` at the end of this tick, together with what else comes until then."""

    def write_through(self, frame: memoryview) -> None:
        """Send what was appended and then ``frame`` before returning; its memory is only lent."""

    def close(self) -> None:
        """Send what was appended and close."""


class ConnectionOwner(Protocol):
    """Whoever answers for a tunnel."""

    def request_received(self, stream: TunnelStream, headers: Headers) -> None:
        """A CONNECT request (server side). Answer with ``respond``, later call ``release_slot`` once."""

    def settings_received(self) -> None:
        """The peer's SETTINGS are in force; called again when they change."""

    def stream_closed(self) -> None:
        """A stream is gone, so there may be room for another."""

    def goaway_received(self, code: int, debug: bytes) -> None:
        """The peer takes no more streams on this connection."""

    def guard_tripped(self, abuse: Abuse, message: str) -> None:
        """The peer spent a flood budget; ``connection_closed`` follows."""

    def connection_closed(self, code: int, reason: str) -> None:
        """The tunnel is over; every stream was told before."""


class TunnelConnection:
    """The state of one tunnel; ``client`` is the end that opens streams.

    ``peer_streams`` is how many streams the peer allows at once. ``draining`` is true when no new stream may be
    opened (GOAWAY in either direction, stream ids used up).
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
        self.held = 0
        self.credit_due = 0
        self.stream_credit_due = 0
        # a quarter of the window: few updates, and never a sender that waits for one that is not due
        self.stream_credit_threshold = settings.stream_window // 4
        self._credit_threshold = settings.connection_window // 4
        self._owed = 0
        self._debt = 0
        self._late_frames = 0
        self._settings_acknowledged = False
        self._slots = 0
        self._reads = 0
        self._next_stream = 1
        self._highest_peer_stream = 0
        self._accept_until = MAX_STREAM_ID
        self._final_goaway_at: float | None = None
        self._unsent_control = 0
        self._now = now
        self._received_at = now
        self._ping_sent: float | None = None
        self._reader = FrameReader(self, server=not client)
        self._control = ControlPlane(settings, client_side=client)
        self._headers = HeaderDecoder(
            max_size=settings.client_header_list_size if client else settings.server_header_list_size,
            max_fields=settings.max_header_fields,
        )
        output.append(self._control.preface())
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
        return self._add(stream_id, owner)

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
        self._reply(answer)

    def release_slot(self) -> None:
        """A request's work has ended. Only this, not the end of the stream, frees its slot."""
        self._slots -= 1

    # -- received bytes --------------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> None:
        """Take decrypted bytes; violations close the tunnel, nothing is raised."""
        if self.closed:
            return
        self._now = self._received_at = now
        self._reads += 1
        try:
            self._reader.feed(data)
        except ProtocolViolation as violation:
            self.terminate(violation.code, str(violation))
        except GuardTripped as trip:
            self._tripped(trip)

    def preface_received(self) -> None:
        """The client's magic was right (called by the reader)."""
        self._control.feed(CLIENT_PREFACE)

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
        self._check_not_idle(stream_id)
        if length:
            return
        if self._late_frames > 0:
            self._late_frames -= 1
        else:
            self.count(Abuse.GLITCH)

    def control_frame(self, kind: int, flags: int, stream_id: int, frame: bytearray) -> None:
        """Handle one whole frame that is not DATA (called by the reader)."""
        if kind == WINDOW_UPDATE:
            self._window_update(stream_id, frame)
        elif kind == RST_STREAM:
            self._reset_received(stream_id, frame)
        elif kind == GOAWAY:
            self._goaway_received(stream_id, frame)
        elif kind == PRIORITY:
            self.count(Abuse.GLITCH)
        elif kind == PUSH_PROMISE:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody may send here")
        else:
            # acknowledgements too: a peer can send them as fast as anything else
            if kind == PING:
                self.count(Abuse.PING)
            elif kind == SETTINGS:
                self.count(Abuse.SETTINGS)
            self._feed_control(frame)

    def _feed_control(self, frame: bytearray) -> None:
        try:
            events, reply = self._control.feed(frame)
        except ProtocolError as error:
            raise ProtocolViolation(
                ErrorCode(error.error_code), str(error) or type(error).__name__
            ) from error
        if reply:
            self._reply(reply)
        for event in events:
            if not self.closed:
                self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self._settings(event)
        elif isinstance(event, SettingsAcknowledged):
            self._headers.table_refused()
            self._settings_acknowledged = True
        elif isinstance(event, PingAckReceived):
            self._ping_sent = None

    def header_block(self, stream_id: int, block: bytearray, *, end_stream: bool) -> None:
        """Handle one whole header block (called by the reader)."""
        try:
            headers = self._headers.decode(block)
        except HeaderBlockError as error:
            raise ProtocolViolation(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        except HeaderListTooLarge as error:
            raise GuardTripped(Abuse.HEADER_LIST, str(error)) from error
        stream = self.streams.get(stream_id)
        if stream is not None and (stream.answered or not self.client):
            self.violate_stream(
                stream, ErrorCode.PROTOCOL_ERROR, "a header block inside a tunnelled connection"
            )
        elif self.client:
            self._response(stream_id, stream, headers, end_stream=end_stream)
        else:
            self._request(stream_id, headers, end_stream=end_stream)

    def _response(
        self, stream_id: int, stream: TunnelStream | None, headers: Headers, *, end_stream: bool
    ) -> None:
        if stream is None:
            self.frame_without_stream(stream_id)
            return
        try:
            status = check_response(headers)
        except MalformedHeaders as error:
            self.violate_stream(stream, ErrorCode.PROTOCOL_ERROR, f"a malformed response: {error}")
            return
        if status < _FIRST_FINAL_STATUS:
            if end_stream:
                self.violate_stream(
                    stream, ErrorCode.PROTOCOL_ERROR, "an interim response that ends its stream"
                )
            else:
                self.count(Abuse.GLITCH)
            return
        stream.answered = True
        if end_stream:
            stream.remote_ended = stream.early_end = True
        stream.owner.stream_answered(stream, headers)

    def _request(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        if not stream_id & 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"a request on stream {stream_id}")
        if stream_id <= self._highest_peer_stream:
            self.frame_without_stream(stream_id)
            self._reply(rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            self.count(Abuse.MADE_YOU_RESET)
            return
        self._highest_peer_stream = stream_id
        try:
            check_request(headers)
        except MalformedHeaders:
            self._late_frames += _LATE_FRAMES_PER_STREAM
            self._reply(rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR))
            self.count(Abuse.MADE_YOU_RESET)
            return
        most = self.settings.max_concurrent_streams if self._settings_acknowledged else _UNTOLD_STREAMS
        if (
            stream_id > self._accept_until
            or len(self.streams) >= most
            or self._slots >= most * _SLOTS_PER_STREAM
        ):
            self._reply(rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self.count(Abuse.REFUSED_STREAM)
            return
        self._slots += 1
        stream = self._add(stream_id, NOBODY)
        stream.asked_in = self._reads
        if end_stream:
            stream.remote_ended = stream.early_end = True
        self.owner.request_received(stream, headers)

    def _add(self, stream_id: int, owner: StreamOwner) -> TunnelStream:
        stream = self.streams[stream_id] = TunnelStream(self, stream_id, owner)
        # a peer may size the window of each stream with an update of its own instead of by SETTINGS
        self.stream_credit_due = max(0, self.stream_credit_due) + _MIN_CREDIT_PER_UPDATE
        return stream

    def _settings(self, event: RemoteSettingsChanged) -> None:
        changed = event.changed_settings
        if (size := changed.get(SettingCodes.MAX_FRAME_SIZE)) is not None:
            self.peer_max_frame = size.new_value
        if (window := changed.get(SettingCodes.INITIAL_WINDOW_SIZE)) is not None:
            delta = window.new_value - self.peer_stream_window
            self.peer_stream_window = window.new_value
            for stream in list(self.streams.values()):
                stream.send_window += delta
                if stream.send_window > MAX_WINDOW_BYTES:
                    raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS made a window too large")
            if delta > 0:
                self._resume_waiting()
        if (streams := changed.get(SettingCodes.MAX_CONCURRENT_STREAMS)) is not None:
            self.peer_streams = streams.new_value
        elif not self.ready:
            self.peer_streams = MAX_STREAM_ID  # RFC 9113 section 6.5.2: no limit unless the peer names one
        self.ready = True
        self.owner.settings_received()

    # -- flow control ----------------------------------------------------------------------------------------

    def credit_connection(self, size: int) -> None:
        """Payload came: return its connection credit now, or when some of what is held has been delivered."""
        if self.held > self.settings.held_limit:
            self._debt += size
            return
        self._owed += size
        if self._owed >= self._credit_threshold:
            self.recv_window += self._owed
            self._reply(window_update(0, self._owed))
            self._owed = 0

    def credit_stream(self, stream: TunnelStream) -> None:
        """Return the credit that a stream has earned by delivery."""
        if not stream.remote_ended and not stream.closed:
            stream.recv_window += stream.owed
            self._reply(window_update(stream.id, stream.owed))
            stream.owed = 0

    def release_held(self, size: int) -> None:
        """Held payload was delivered or dropped."""
        self.held -= size
        if self._debt and self.held <= self.settings.held_limit:
            debt, self._debt = self._debt, 0
            self.credit_connection(debt)

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
        self._resume_waiting()

    def _resume_waiting(self) -> None:
        for stream in list(self.waiting):
            if self.congested or self.send_window <= 0:
                return
            if stream in self.waiting:  # what another one resumed may have ended it
                stream.try_resume()

    def _window_update(self, stream_id: int, frame: bytearray) -> None:
        if len(frame) != HEADER_BYTES + 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE of the wrong length")
        increment = _U32.unpack_from(frame, HEADER_BYTES)[0] & STREAM_ID_MASK
        if stream_id == 0:
            if increment == 0:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of zero")
            if self.credit_due > 0:
                self.credit_due = _spend(self.credit_due, increment)
            else:
                self.count(Abuse.WINDOW_UPDATE)
            self.send_window += increment
            if self.send_window > MAX_WINDOW_BYTES:
                raise ProtocolViolation(
                    ErrorCode.FLOW_CONTROL_ERROR, "the connection window became too large"
                )
            self._resume_waiting()
            return
        if self.stream_credit_due > 0:
            self.stream_credit_due = _spend(self.stream_credit_due, increment)
        else:
            self.count(Abuse.WINDOW_UPDATE)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            return
        if increment == 0:
            self.violate_stream(stream, ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of zero")
            return
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW_BYTES:
            self.violate_stream(stream, ErrorCode.FLOW_CONTROL_ERROR, "the stream window became too large")
        elif stream in self.waiting:
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
        self._reply(rst_stream(stream.id, code))

    def violate_stream(self, stream: TunnelStream, code: ErrorCode, reason: str) -> None:
        """The peer broke the rules on one stream: reset it and count that it made us do so."""
        self._lose(stream, code, reason)
        self._reply(rst_stream(stream.id, code))
        self.count(Abuse.MADE_YOU_RESET)

    def _lose(self, stream: TunnelStream, code: int, reason: str) -> None:
        self._remove(stream)
        stream.lost(code, reason)
        self.owner.stream_closed()

    def _remove(self, stream: TunnelStream) -> None:
        self.streams.pop(stream.id, None)
        self._late_frames += _LATE_FRAMES_PER_STREAM

    def _reset_received(self, stream_id: int, frame: bytearray) -> None:
        if len(frame) != HEADER_BYTES + 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM of the wrong length")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.frame_without_stream(stream_id)
            return
        code = _U32.unpack_from(frame, HEADER_BYTES)[0]
        self._lose(stream, code, f"the peer reset the stream ({error_name(code)})")
        # an answer may be given at once; who did not even wait for it has reset the stream before it (CVE-2023-44487)
        if not self.client and (not stream.answered or stream.asked_in == self._reads):
            self.count(Abuse.RAPID_RESET)

    def _check_not_idle(self, stream_id: int) -> None:
        ours = bool(stream_id & 1) == self.client
        highest = self._next_stream - 2 if ours else self._highest_peer_stream
        if stream_id == 0 or (ours and not self.client) or stream_id > highest:
            raise ProtocolViolation(
                ErrorCode.PROTOCOL_ERROR, f"a frame for stream {stream_id}, which was never opened"
            )

    # -- the end of the connection ---------------------------------------------------------------------------

    def _goaway_received(self, stream_id: int, frame: bytearray) -> None:
        self.count(Abuse.GLITCH)
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"a GOAWAY on stream {stream_id}")
        if len(frame) < HEADER_BYTES + 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY that is too short")
        last = _U32.unpack_from(frame, HEADER_BYTES)[0] & STREAM_ID_MASK
        code = _U32.unpack_from(frame, HEADER_BYTES + 4)[0]
        self.draining = True
        self.owner.goaway_received(code, bytes(frame[HEADER_BYTES + 8 :]))
        if self.client:
            for stream in [stream for stream in self.streams.values() if stream.id > last]:
                self._lose(stream, ErrorCode.REFUSED_STREAM, "the peer goes away and did not take the stream")

    def drain(self, now: float) -> None:
        """Ask the peer to open no more streams; those under way go on (RFC 9113 section 6.8)."""
        if self.closed or self.draining:
            return
        self.draining = True
        if self.client:
            self._reply(goaway(0, ErrorCode.NO_ERROR))
        else:
            self._reply(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self._final_goaway_at = now + self.settings.drain_round_trip

    def terminate(self, code: ErrorCode, reason: str) -> None:
        """Send GOAWAY and close at once; every stream is told."""
        if self.closed:
            return
        # RFC 9113 section 6.8: the last stream id must not rise after an earlier GOAWAY
        last = min(self._highest_peer_stream, self._accept_until)
        self.output.append(goaway(last, code, reason.encode()[:256]))
        self._end(code, reason)
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
            self._accept_until = self._highest_peer_stream
            self._reply(goaway(self._highest_peer_stream, ErrorCode.NO_ERROR))
        settings = self.settings
        if self._ping_sent is not None:
            # any byte proves that the peer lives, so a busy tunnel is never cut for a late PONG
            if now - max(self._ping_sent, self._received_at) >= settings.ping_timeout:
                self.terminate(ErrorCode.NO_ERROR, f"no answer to PING within {settings.ping_timeout:g} s")
                return
        elif now - self._received_at >= settings.ping_interval:
            self._ping_sent = now
            self._control.ping(_PING_PAYLOAD)
            self._reply(self._control.data_to_send())
        self._reset_stalled(now)

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
                self._lose(stream, ErrorCode.CANCEL, f"the peer granted no window for {limit:g} s")
                self._reply(rst_stream(stream.id, ErrorCode.CANCEL))
                self.count(Abuse.STALLED_STREAM)
        except GuardTripped as trip:
            self._tripped(trip)

    def _tripped(self, trip: GuardTripped) -> None:
        if not self.closed:
            self.owner.guard_tripped(trip.abuse, str(trip))
            self.terminate(ErrorCode.ENHANCE_YOUR_CALM, str(trip))

    def _reply(self, frames: bytes) -> None:
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


def _spend(due: int, increment: int) -> int:
    # a peer may enlarge its window by far more than we sent; that must not count against its next updates
    return max(due - max(increment, _MIN_CREDIT_PER_UPDATE), -_MIN_CREDIT_PER_UPDATE)
