"""An outgoing tunnel: dialled, verified, and used for many CONNECT streams."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from certs.context import open_session
from ztun.errors import ConnectError, ConnectRefused, TunnelError, TunnelTlsError, ZtunError
from ztun.hbone.connect import parse_status
from ztun.hbone.wire import ErrorCode
from ztun.net.dial import SocketOptions, connect
from ztun.net.session import TunnelSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from OpenSSL import SSL

    from certs.peer import PeerExpectation
    from ztun.hbone.guard import Abuse, GuardLimits
    from ztun.hbone.headers import Headers
    from ztun.hbone.settings import TunnelSettings
    from ztun.hbone.stream import TunnelStream
    from ztun.net.namespaces import NetworkNamespace
    from ztun.net.poller import Poller
    from ztun.net.tls import TlsTransport


@dataclass(frozen=True, slots=True)
class TunnelTimeouts:
    """How long each stage of a tunnel may take, in seconds (ztunnel bounds only the first)."""

    connect: float = 10.0
    tls_handshake: float = 10.0
    h2_preface: float = 10.0
    connect_response: float = 20.0
    """Longer than ``connect``: the far end dials the application before it answers."""


class Tunnel(TunnelSession):
    """A tunnel that we dialled. ``idle_since`` is the loop's time when its last stream ended."""

    client_side = True

    def __init__(
        self,
        poller: Poller,
        *,
        settings: TunnelSettings,
        limits: GuardLimits,
        remote: str,
        on_change: Callable[[Tunnel], None],
        on_guard: Callable[[str, Abuse, str], None],
    ) -> None:
        super().__init__(poller, settings=settings, limits=limits, remote=remote)
        self._on_change = on_change
        self._on_guard = on_guard
        self._handshaken: asyncio.Future[None] = poller.loop.create_future()
        self._settled: asyncio.Future[None] = poller.loop.create_future()
        self._unanswered = Unanswered(poller.loop)
        self.idle_since = poller.loop.time()
        self.source_kept = True

    async def ready(self, timeouts: TunnelTimeouts) -> None:
        """Wait until streams can be opened. Raises what ended the tunnel, or the stage that took too long."""
        try:
            async with asyncio.timeout(timeouts.tls_handshake):
                await self._handshaken
        except TimeoutError:
            self.tls.abort()
            raise TunnelTlsError(
                "tls_timeout",
                f"the TLS handshake took more than {timeouts.tls_handshake:g} s",
                hint="is the peer an HBONE proxy, and is it overloaded?",
                peer=self.remote,
            ) from None
        try:
            async with asyncio.timeout(timeouts.h2_preface):
                await self._settled
        except TimeoutError:
            self.tls.abort()
            raise TunnelError(
                "h2_preface_timeout",
                f"the peer sent no HTTP/2 SETTINGS within {timeouts.h2_preface:g} s",
                peer=self.remote,
            ) from None

    @property
    def free_streams(self) -> int:
        """How many more streams this tunnel takes."""
        return 0 if self.is_closed or self.connection is None else self.connection.free_streams

    @property
    def stream_count(self) -> int:
        """How many streams it carries now."""
        return 0 if self.connection is None else len(self.connection.streams)

    def request(self, headers: Iterable[tuple[bytes, bytes]], timeout: float, done: Answered) -> Opening:
        """Open a CONNECT stream; ``done`` is called once, with the stream or with why there is none.

        The failure is a :class:`ConnectRefused` for any status but 200, a :class:`ConnectError` when the answer takes
        more than ``timeout`` seconds, a :class:`TunnelError` when the stream or the tunnel ends first (code
        ``stream_refused`` when the peer did not take the stream at all).
        """
        assert self.connection is not None
        opening = Opening(self, done)
        opening.stream = self.connection.open_stream(headers, opening)
        self._unanswered.add(opening, timeout)
        return opening

    async def open(self, headers: Iterable[tuple[bytes, bytes]], timeout: float) -> TunnelStream:
        """The same for who can wait: gives the stream or raises the failure."""
        answer: asyncio.Future[TunnelStream] = self._loop.create_future()

        def done(_tunnel: Tunnel, stream: TunnelStream | None, failure: ZtunError | None) -> None:
            if answer.done():
                return
            if stream is not None:
                answer.set_result(stream)
            else:
                assert failure is not None
                answer.set_exception(failure)
                answer.exception()  # nobody may be waiting any more

        opening = self.request(headers, timeout, done)
        try:
            return await answer
        except asyncio.CancelledError:
            opening.cancel()
            raise

    def retire(self) -> None:
        """Take no new streams; close when the last one has ended."""
        if self.connection is not None:
            self.connection.drain(self._loop.time())
            if not self.connection.streams:
                self.tls.close()
        else:
            self.tls.abort()

    def cut(self, failure: ZtunError) -> None:
        """Close at once, with every stream on it."""
        self.failure = self.failure or failure
        if self.connection is not None:
            self.connection.terminate(ErrorCode.NO_ERROR, str(failure))
        else:
            self.tls.abort()

    # -- from below ------------------------------------------------------------------------------------------

    def handshake_done(self, transport: TlsTransport) -> None:
        """Start HTTP/2."""
        super().handshake_done(transport)
        if not self._handshaken.done():
            self._handshaken.set_result(None)

    def settings_received(self) -> None:
        """Streams may be opened now, or more of them than before."""
        if not self._settled.done():
            self._settled.set_result(None)
        self._on_change(self)

    def stream_closed(self) -> None:
        """Room for another stream, or the end of a tunnel that was to end."""
        connection = self.connection
        if connection is not None and not connection.streams:
            self.idle_since = self._loop.time()
            if connection.draining and not connection.closed:
                self._loop.call_soon(self._close_if_idle)
        self._on_change(self)

    def _close_if_idle(self) -> None:
        if self.connection is not None and not self.connection.streams:
            self.tls.close()

    def goaway_received(self, code: int, debug: bytes) -> None:
        """The pool must not use this tunnel any more."""
        if self.connection is not None and not self.connection.streams:
            self._loop.call_soon(self._close_if_idle)
        self._on_change(self)

    def guard_tripped(self, abuse: Abuse, message: str) -> None:
        """Report the peer."""
        self._on_guard(self.remote, abuse, message)

    def session_closed(self) -> None:
        """Whoever waits for the tunnel learns why it will not come."""
        failure = self.failure or TunnelError("tunnel_closed", "the peer closed the tunnel", peer=self.remote)
        for waiter in (self._handshaken, self._settled):
            if not waiter.done():
                waiter.set_exception(failure)
                waiter.exception()  # the one who waits raises it; nobody has to
        self._unanswered.close()
        self._on_change(self)


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

    def too_late(self, seconds: float) -> None:
        """The peer takes too long."""
        assert self.stream is not None
        self.stream.abort(ErrorCode.CANCEL)
        self._settle(
            None,
            ConnectError(
                "connect_response_timeout",
                f"the peer did not answer CONNECT within {seconds:g} s",
                hint="the destination's application may not accept connections",
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
        self._settle(None, TunnelError(name, reason, peer=self.tunnel.remote))

    def _settle(self, stream: TunnelStream | None, failure: ZtunError | None) -> None:
        if not self.settled:
            self.settled = True
            self._done(self.tunnel, stream, failure)


class Unanswered:
    """The requests of one tunnel that wait for their answer, with one timer for all of them.

    All have the same time, so the first is the first to be too late. A timer for each costs 2 us a connection.
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
            _, timeout, opening = waiting.popleft()
            if not opening.settled:
                opening.too_late(timeout)
        if waiting and self._timer is None:
            self._timer = self._loop.call_at(waiting[0][0], self._look)


async def dial_tunnel(
    tunnel: Tunnel,
    address: tuple[str, int],
    context: SSL.Context,
    expectation: PeerExpectation,
    *,
    source_ip: str | None,
    options: SocketOptions,
    timeouts: TunnelTimeouts,
    namespace: NetworkNamespace | None = None,
) -> Tunnel:
    """Connect, shake hands, exchange SETTINGS. Raises :class:`ZtunError` of the stage that failed."""
    dial = await connect(
        address, options=options, timeout=timeouts.connect, source_ip=source_ip, namespace=namespace
    )
    tunnel.source_kept = dial.source_kept
    try:
        tunnel.tls.connected(dial.sock)
        tunnel.tls.start(open_session(context, "client", expectation))
        await tunnel.ready(timeouts)
    except BaseException:
        tunnel.tls.abort()
        raise
    return tunnel


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
