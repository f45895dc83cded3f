"""Frames of the peer that carry neither payload nor headers, and what each does to the connection.

SETTINGS and PING go through ``ControlPlane``. GOAWAY never reaches ``h2``: it would refuse every frame after the first
one, and streams that are under way must end in peace.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from h2.events import Event, PingAckReceived, RemoteSettingsChanged, SettingsAcknowledged
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from ztun.hbone.guard import Abuse
from ztun.hbone.reader import ProtocolViolation
from ztun.hbone.settings import MAX_WINDOW_BYTES
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
)

if TYPE_CHECKING:
    from ztun.hbone.connection import TunnelConnection
    from ztun.hbone.control import ControlPlane

MIN_CREDIT_PER_UPDATE = (
    1024  # a WINDOW_UPDATE is free for this many bytes we sent; smaller steps eat the budget
)
_PING_PAYLOAD = b"ztunping"
_U32 = struct.Struct(">L")


class ControlFrames:
    """Reads the control frames of one connection. Everything raises ``ProtocolViolation`` and ``GuardTripped``."""

    __slots__ = ("_connection", "_ping_sent", "_plane")

    def __init__(self, connection: TunnelConnection, plane: ControlPlane) -> None:
        self._connection = connection
        self._plane = plane
        self._ping_sent: float | None = None

    def preface_received(self) -> None:
        """The client's magic was right."""
        self._plane.feed(CLIENT_PREFACE)

    def received(self, kind: int, flags: int, stream_id: int, frame: bytearray) -> None:
        """Handle one whole frame, header included."""
        connection = self._connection
        if kind == WINDOW_UPDATE:
            self._window_update(stream_id, frame)
        elif kind == RST_STREAM:
            self._reset(stream_id, frame)
        elif kind == GOAWAY:
            self._goaway(stream_id, frame)
        elif kind == PRIORITY:
            connection.count(Abuse.GLITCH)
        elif kind == PUSH_PROMISE:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody may send here")
        else:
            # acknowledgements too: a peer can send them as fast as anything else
            if kind == PING:
                connection.count(Abuse.PING)
            elif kind == SETTINGS:
                connection.count(Abuse.SETTINGS)
            self._stream_zero(frame)

    # -- keepalive -------------------------------------------------------------------------------------------

    def keep_alive(self, now: float) -> bytes:
        """Called every second: a PING to be sent, if one is due."""
        connection = self._connection
        if self._ping_sent is not None or now - connection.received_at < connection.settings.ping_interval:
            return b""
        self._ping_sent = now
        self._plane.ping(_PING_PAYLOAD)
        return self._plane.data_to_send()

    def peer_is_dead(self, now: float) -> bool:
        """Nothing came since a PING that had to be answered by now."""
        # any byte proves that the peer lives, so a busy tunnel is never cut for a late PONG
        return (
            self._ping_sent is not None
            and now - max(self._ping_sent, self._connection.received_at)
            >= self._connection.settings.ping_timeout
        )

    # -- SETTINGS and PING -----------------------------------------------------------------------------------

    def _stream_zero(self, frame: bytearray) -> None:
        connection = self._connection
        try:
            events, reply = self._plane.feed(frame)
        except ProtocolError as error:
            raise ProtocolViolation(
                ErrorCode(error.error_code), str(error) or type(error).__name__
            ) from error
        if reply:
            connection.reply(reply)
        for event in events:
            if not connection.closed:
                self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self._settings(event)
        elif isinstance(event, SettingsAcknowledged):
            self._connection.exchange.settings_acknowledged()
        elif isinstance(event, PingAckReceived):
            self._ping_sent = None

    def _settings(self, event: RemoteSettingsChanged) -> None:
        connection = self._connection
        changed = event.changed_settings
        if (size := changed.get(SettingCodes.MAX_FRAME_SIZE)) is not None:
            connection.peer_max_frame = size.new_value
        if (window := changed.get(SettingCodes.INITIAL_WINDOW_SIZE)) is not None:
            delta = window.new_value - connection.peer_stream_window
            connection.peer_stream_window = window.new_value
            for stream in list(connection.streams.values()):
                stream.send_window += delta
                if stream.send_window > MAX_WINDOW_BYTES:
                    raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS made a window too large")
            if delta > 0:
                connection.resume_waiting()
        if (streams := changed.get(SettingCodes.MAX_CONCURRENT_STREAMS)) is not None:
            connection.peer_streams = streams.new_value
        elif not connection.ready:
            # RFC 9113 section 6.5.2: no limit unless the peer names one
            connection.peer_streams = MAX_STREAM_ID
        connection.ready = True
        connection.owner.settings_received()

    # -- WINDOW_UPDATE ---------------------------------------------------------------------------------------

    def _window_update(self, stream_id: int, frame: bytearray) -> None:
        if len(frame) != HEADER_BYTES + 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE of the wrong length")
        increment = _U32.unpack_from(frame, HEADER_BYTES)[0] & STREAM_ID_MASK
        if stream_id == 0:
            self._connection_window(increment)
        else:
            self._stream_window(stream_id, increment)

    def _connection_window(self, increment: int) -> None:
        connection = self._connection
        if increment == 0:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of zero")
        if connection.credit_due > 0:
            connection.credit_due = _spend(connection.credit_due, increment)
        else:
            connection.count(Abuse.WINDOW_UPDATE)
        connection.send_window += increment
        if connection.send_window > MAX_WINDOW_BYTES:
            raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "the connection window became too large")
        connection.resume_waiting()

    def _stream_window(self, stream_id: int, increment: int) -> None:
        connection = self._connection
        if connection.stream_credit_due > 0:
            connection.stream_credit_due = _spend(connection.stream_credit_due, increment)
        else:
            connection.count(Abuse.WINDOW_UPDATE)
        stream = connection.streams.get(stream_id)
        if stream is None:
            connection.check_not_idle(stream_id)
            return
        if increment == 0:
            connection.violate_stream(stream, ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of zero")
            return
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW_BYTES:
            connection.violate_stream(
                stream, ErrorCode.FLOW_CONTROL_ERROR, "the stream window became too large"
            )
        elif stream in connection.waiting:
            stream.try_resume()

    # -- RST_STREAM and GOAWAY -------------------------------------------------------------------------------

    def _reset(self, stream_id: int, frame: bytearray) -> None:
        connection = self._connection
        if len(frame) != HEADER_BYTES + 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM of the wrong length")
        stream = connection.streams.get(stream_id)
        if stream is None:
            connection.frame_without_stream(stream_id)
            return
        code = _U32.unpack_from(frame, HEADER_BYTES)[0]
        connection.lose_stream(stream, code, f"the peer reset the stream ({error_name(code)})")
        # an answer may be given at once; who did not even wait for it has reset the stream before it (CVE-2023-44487)
        if not connection.client and (not stream.answered or stream.asked_in == connection.reads):
            connection.count(Abuse.RAPID_RESET)

    def _goaway(self, stream_id: int, frame: bytearray) -> None:
        connection = self._connection
        connection.count(Abuse.GLITCH)
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"a GOAWAY on stream {stream_id}")
        if len(frame) < HEADER_BYTES + 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY that is too short")
        last = _U32.unpack_from(frame, HEADER_BYTES)[0] & STREAM_ID_MASK
        code = _U32.unpack_from(frame, HEADER_BYTES + 4)[0]
        connection.draining = True
        connection.owner.goaway_received(code, bytes(frame[HEADER_BYTES + 8 :]))
        if connection.client:
            for stream in [stream for stream in connection.streams.values() if stream.id > last]:
                connection.lose_stream(
                    stream, ErrorCode.REFUSED_STREAM, "the peer goes away and did not take the stream"
                )


def _spend(due: int, increment: int) -> int:
    # a peer may enlarge its window by far more than we sent; that must not count against its next updates
    return max(due - max(increment, MIN_CREDIT_PER_UPDATE), -MIN_CREDIT_PER_UPDATE)
