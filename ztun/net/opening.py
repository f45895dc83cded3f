"""A CONNECT request on its way: from the moment it is sent until it is answered, refused, lost or too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ztun.errors import ConnectError, ConnectRefused, TunnelError, ZtunError
from ztun.hbone.connect import parse_status
from ztun.hbone.wire import ErrorCode

if TYPE_CHECKING:
    import asyncio

    from ztun.hbone.headers import Headers
    from ztun.hbone.stream import TunnelStream
    from ztun.net.tunnel import Tunnel

Answered: TypeAlias = "Callable[[Tunnel, TunnelStream | None, ZtunError | None], None]"
"""(tunnel, stream that was accepted, or why there is none)."""


class Opening:
    """Owner of a stream until its answer came."""

    __slots__ = ("_done", "settled", "stream", "tunnel")

    def __init__(self, tunnel: Tunnel, done: Answered) -> None:
        self.tunnel = tunnel
        self._done = done
        self.stream: TunnelStream | None = None
        self.settled = False

    def cancel(self) -> None:
        """Nobody wants it any more, also if it came meanwhile; ``done`` is not called."""
        self.settled = True
        if self.stream is not None:
            self.stream.abort(ErrorCode.CANCEL)

    def too_late(self, seconds: float, asked: float) -> None:
        """The peer takes too long: ``seconds`` since ``asked``, on the clock of the loop."""
        assert self.stream is not None
        self.stream.abort(ErrorCode.CANCEL)
        hint = "the destination's application may not accept connections"
        connection = self.tunnel.connection
        if connection is not None and connection.received_at <= asked:
            hint = "its proxy has sent nothing at all since then: is the node or the network down?"
            self.tunnel.retire()
        self._settle(
            None,
            ConnectError(
                "connect_response_timeout",
                f"the peer did not answer CONNECT within {seconds:g} s",
                hint=hint,
                peer=self.tunnel.remote,
            ),
        )

    def stream_answered(self, stream: TunnelStream, headers: Headers) -> None:
        """The final response."""
        status = parse_status(headers)
        if status == 200:
            self._settle(stream, None)
            return
        stream.offer_end()
        if not stream.closed:
            stream.abort(ErrorCode.CANCEL)
        failure = ConnectRefused(
            status, f"http status: {_phrase(status)}", hint=_hint(status), peer=self.tunnel.remote
        )
        self._settle(None, failure)

    def stream_closed(self, stream: TunnelStream) -> None:
        """Nothing: the answer came before."""

    def stream_reset(self, stream: TunnelStream, code: int, reason: str) -> None:
        """No answer will come."""
        name = "stream_refused" if code == ErrorCode.REFUSED_STREAM else "stream_reset"
        if self.tunnel.connection is None or self.tunnel.connection.closed:
            name = "tunnel_lost"
        self._settle(None, TunnelError(name, reason, peer=self.tunnel.remote))

    def _settle(self, stream: TunnelStream | None, failure: ZtunError | None) -> None:
        if not self.settled:
            self.settled = True
            self._done(self.tunnel, stream, failure)


class Unanswered:
    """The requests of one tunnel that wait for their answer, with one timer for all of them.

    All have the same time, so the first is the first to be too late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[float, float, Opening]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, opening: Opening, timeout: float) -> None:
        """Wait so many seconds for the answer of one more."""
        waiting = self._waiting
        while waiting and waiting[0][2].settled:
            waiting.popleft()
        due = self._loop.time() + timeout
        waiting.append((due, timeout, opening))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def close(self) -> None:
        """The tunnel is over, and every opening was told."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        waiting, now = self._waiting, self._loop.time()
        while waiting and (waiting[0][2].settled or waiting[0][0] <= now):
            due, timeout, opening = waiting.popleft()
            if not opening.settled:
                opening.too_late(timeout, due - timeout)
        if waiting and self._timer is None:
            self._timer = self._loop.call_at(waiting[0][0], self._look)


def _phrase(status: int) -> str:
    names = {
        400: "400 Bad Request",
        401: "401 Unauthorized",
        403: "403 Forbidden",
        404: "404 Not Found",
        503: "503 Service Unavailable",
    }
    return names.get(status, str(status))


def _hint(status: int) -> str:
    return {
        400: "the peer does not serve this destination",
        401: "an authorization policy at the destination denied the connection",
        403: "an authorization policy at the destination denied the connection",
        404: "the waypoint does not serve this destination",
        503: "the destination's application is not reachable from its proxy",
    }.get(status, "")
