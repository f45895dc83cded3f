"""Header blocks of the peer: the requests of a client, which are admitted or refused, and the answers of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.hbone.guard import Abuse, GuardTripped
from ztun.hbone.headers import (
    HeaderBlockError,
    HeaderDecoder,
    HeaderListTooLarge,
    Headers,
    MalformedHeaders,
    check_request,
    check_response,
)
from ztun.hbone.reader import ProtocolViolation
from ztun.hbone.stream import NOBODY, TunnelStream
from ztun.hbone.wire import MAX_STREAM_ID, ErrorCode, rst_stream

if TYPE_CHECKING:
    from ztun.hbone.connection import TunnelConnection

_SLOTS_PER_STREAM = 2
"""A stream ends for the peer before its work has ended for us, and the peer may open the next one at once. So the
limit that we advertise binds the streams, and this many times it binds the work behind them (CVE-2025-8671)."""
_FIRST_FINAL_STATUS = 200
_UNTOLD_STREAMS = (
    1024  # what a peer may open before it has read our limit; Envoy's default is as many at once
)


class Exchange:
    """Reads the header blocks of one connection.

    ``highest`` is the last stream the peer has opened, ``accept_until`` the last one it may open, ``slots`` how many
    requests are still worked on.
    """

    __slots__ = ("_acknowledged", "_connection", "_headers", "accept_until", "highest", "slots")

    def __init__(self, connection: TunnelConnection) -> None:
        settings = connection.settings
        self._connection = connection
        self._headers = HeaderDecoder(
            max_size=(
                settings.client_header_list_size if connection.client else settings.server_header_list_size
            ),
            max_fields=settings.max_header_fields,
        )
        self._acknowledged = False
        self.highest = 0
        self.accept_until = MAX_STREAM_ID
        self.slots = 0

    def settings_acknowledged(self) -> None:
        """The peer has read our limits; from now on it is held to them."""
        self._headers.table_refused()
        self._acknowledged = True

    def received(self, stream_id: int, block: bytearray, *, end_stream: bool) -> None:
        """Handle one whole header block. Raises ``ProtocolViolation`` and ``GuardTripped``."""
        connection = self._connection
        for _ in range(len(block) // connection.guard.limits.large_header_bytes):
            connection.count(Abuse.LARGE_HEADERS)
        try:
            headers = self._headers.decode(block)
        except HeaderBlockError as error:
            raise ProtocolViolation(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        except HeaderListTooLarge as error:
            raise GuardTripped(Abuse.HEADER_LIST, str(error)) from error
        stream = connection.streams.get(stream_id)
        if stream is not None and (stream.answered or not connection.client):
            connection.violate_stream(
                stream, ErrorCode.PROTOCOL_ERROR, "a header block inside a tunnelled connection"
            )
        elif connection.client:
            self._response(stream_id, stream, headers, end_stream=end_stream)
        else:
            self._request(stream_id, headers, end_stream=end_stream)

    def _response(
        self, stream_id: int, stream: TunnelStream | None, headers: Headers, *, end_stream: bool
    ) -> None:
        connection = self._connection
        if stream is None:
            connection.frame_without_stream(stream_id)
            return
        try:
            status = check_response(headers)
        except MalformedHeaders as error:
            connection.violate_stream(stream, ErrorCode.PROTOCOL_ERROR, f"a malformed response: {error}")
            return
        if status < _FIRST_FINAL_STATUS:
            if end_stream:
                connection.violate_stream(
                    stream, ErrorCode.PROTOCOL_ERROR, "an interim response that ends its stream"
                )
            else:
                connection.count(Abuse.GLITCH)
            return
        stream.answered = True
        if end_stream:
            stream.remote_ended = stream.early_end = True
        stream.owner.stream_answered(stream, headers)

    def _request(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        connection = self._connection
        if not stream_id & 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"a request on stream {stream_id}")
        if stream_id <= self.highest:
            connection.frame_without_stream(stream_id)
            connection.reply(rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            connection.count(Abuse.MADE_YOU_RESET)
            return
        self.highest = stream_id
        try:
            check_request(headers)
        except MalformedHeaders:
            connection.excuse_late_frames()
            connection.reply(rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR))
            connection.count(Abuse.MADE_YOU_RESET)
            return
        most = connection.settings.max_concurrent_streams if self._acknowledged else _UNTOLD_STREAMS
        if (
            stream_id > self.accept_until
            or len(connection.streams) >= most
            or self.slots >= most * _SLOTS_PER_STREAM
        ):
            connection.reply(rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            connection.count(Abuse.REFUSED_STREAM)
            return
        self.slots += 1
        stream = connection.add_stream(stream_id, NOBODY)
        stream.asked_in = connection.reads
        if end_stream:
            stream.remote_ended = stream.early_end = True
        connection.owner.request_received(stream, headers)
