"""Joining two ends and watching until both are done.

Payload flows from end to end directly (see ``hbone.stream``); the relay only hears of ends and resets. It finishes
exactly once, with the error that broke the connection or None, and always leaves both ends closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.errors import RelayError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import AppSocket
from ztun.net.stream_socket import Unread

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.hbone.headers import Headers
    from ztun.hbone.stream import TunnelStream


class Relay:
    """Owner of the two ends of one proxied connection.

    ``client`` is the end where the connection came from. ``on_finish`` is called once with the reason (None for an
    orderly end) after both ends were told to close.
    """

    __slots__ = ("_on_finish", "_open_ends", "client", "finished", "server")

    def __init__(
        self,
        client: AppSocket | TunnelStream,
        server: AppSocket | TunnelStream,
        on_finish: Callable[[ZtunError | None], None],
    ) -> None:
        self.client = client
        self.server = server
        self._on_finish: Callable[[ZtunError | None], None] | None = on_finish
        self._open_ends = 2
        self.finished = False

    def start(self) -> None:
        """Let bytes flow."""
        ends = (self.client, self.server)
        for end in ends:
            if isinstance(end, AppSocket):
                end.own(self)
            else:
                end.owner = self
        for end, other in (ends, ends[::-1]):
            if self.finished:
                return
            if isinstance(end, AppSocket):
                if end.closed:
                    self._fail(
                        end, RelayError("closed_early", "the connection ended before it was established")
                    )
                else:
                    end.start(other, other, in_place=None if isinstance(other, AppSocket) else other)
            else:
                end.attach(other, other)
                if end.loss is not None:  # answer, payload and reset came in one read, before this
                    self.stream_reset(end, *end.loss)

    @property
    def half_closed(self) -> bool:
        """One direction has ended and the other has not."""
        client_ended = _read_ended(self.client)
        return client_ended != _read_ended(self.server)

    @property
    def bytes_up(self) -> int:
        """Bytes from the client to the server so far."""
        client = self.client
        return client.bytes_read if isinstance(client, AppSocket) else client.bytes_received

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to the client so far."""
        server = self.server
        return server.bytes_read if isinstance(server, AppSocket) else server.bytes_received

    @property
    def bytes_delivered(self) -> int:
        """Bytes that both ends have handed on, to the kernel or to a tunnel: a slow reader moves, too."""
        return _handed_on(self.client) + _handed_on(self.server)

    @property
    def bytes_unacknowledged(self) -> int:
        """Bytes that the kernels of the two ends' peers have not confirmed, on sockets of our own."""
        return sum(end.unacknowledged for end in (self.client, self.server) if isinstance(end, AppSocket))

    def cut(self, error: ZtunError, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End the connection for a reason of our own; both ends see a reset."""
        if not self.finished:
            self.client.abort(code)
            self.server.abort(code)
            self._finish(error)

    # -- from the ends ---------------------------------------------------------------------------------------

    def socket_closed(self, sock: AppSocket, error: Exception | None) -> None:
        """One socket is gone."""
        if error is None:
            self._end_done()
            return
        who = "client" if sock is self.client else "server"
        if isinstance(error, Unread):
            self._fail(sock, RelayError("unread", f"the {who} does not read the last bytes: {error}"))
            return
        code = "connection_reset" if isinstance(error, ConnectionError) else "socket_error"
        self._fail(sock, RelayError(code, f"the {who} reset the connection"))

    def stream_closed(self, stream: TunnelStream) -> None:
        """One stream ended in both directions."""
        self._end_done()

    def stream_reset(self, stream: TunnelStream, code: int, reason: str) -> None:
        """One stream is gone."""
        if code == ErrorCode.NO_ERROR or (stream.remote_ended and code == ErrorCode.CANCEL):
            # the peer has said all it had to say and reads no more: for TCP that is an orderly end
            other = self.server if stream is self.client else self.client
            if isinstance(other, AppSocket):
                other.offer_end()
                other.abort(ErrorCode.NO_ERROR)
            elif not other.conclude():
                self._open_ends -= 1  # the connection lasts until the other tunnel has taken the rest
                return
            self._finish(None)
            return
        self._fail(stream, RelayError("stream_reset", reason))

    def stream_answered(self, stream: TunnelStream, headers: Headers) -> None:
        """Never called: a relay starts after the answer."""

    def _end_done(self) -> None:
        self._open_ends -= 1
        if self._open_ends == 0:
            self._finish(None)

    def _fail(self, end: AppSocket | TunnelStream, error: ZtunError) -> None:
        if not self.finished:
            other = self.server if end is self.client else self.client
            other.abort(ErrorCode.CONNECT_ERROR)
            self._finish(error)

    def _finish(self, error: ZtunError | None) -> None:
        """Tell, and let go of each other: cycles would keep every connection until the collector comes by."""
        on_finish, self._on_finish = self._on_finish, None
        if on_finish is not None:
            self.finished = True
            for end in (self.client, self.server):
                if not isinstance(end, AppSocket):
                    end.release()
                    end.part()
            on_finish(error)


def _handed_on(end: AppSocket | TunnelStream) -> int:
    return end.bytes_written - end.queued if isinstance(end, AppSocket) else end.bytes_sent


def _read_ended(end: AppSocket | TunnelStream) -> bool:
    return end.read_ended if isinstance(end, AppSocket) else end.remote_ended
