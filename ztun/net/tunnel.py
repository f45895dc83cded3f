"""An outgoing tunnel: dialled, verified, and used for many CONNECT streams."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.context import open_session
from ztun.errors import TunnelError, TunnelTlsError, ZtunError
from ztun.net.dial import SocketOptions, connect
from ztun.net.opening import Answered, Opening, Unanswered
from ztun.net.session import TunnelSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from OpenSSL import SSL

    from certs.peer import PeerExpectation
    from ztun.hbone.guard import Abuse, GuardLimits
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

    @property
    def lingers(self) -> bool:
        """Whether it is closed, and its socket still waits for the peer's end."""
        return self.tls.lingers

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
                self.tls.close_in_order()
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
            self.tls.close_in_order()

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
    try:
        tunnel.tls.connected(dial.sock)
        tunnel.tls.start(open_session(context, "client", expectation))
        await tunnel.ready(timeouts)
    except BaseException:
        tunnel.tls.abort()
        raise
    return tunnel
