"""An accepted tunnel: another proxy's CONNECT streams for one of our workloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certs.context import open_session
from ztun.errors import TunnelError, TunnelTlsError, ZtunError
from ztun.net.session import TunnelSession

if TYPE_CHECKING:
    import asyncio
    import socket
    from typing import Protocol

    from OpenSSL import SSL

    from certs.peer import PeerExpectation
    from ztun.hbone.guard import Abuse, GuardLimits
    from ztun.hbone.headers import Headers
    from ztun.hbone.settings import TunnelSettings
    from ztun.hbone.stream import TunnelStream
    from ztun.net.poller import Poller
    from ztun.net.tls import TlsTransport

    class InboundUser(Protocol):
        """Who serves the requests of accepted tunnels."""

        def tunnel_request(self, tunnel: InboundTunnel, stream: TunnelStream, headers: Headers) -> None:
            """A CONNECT request."""

        def tunnel_guard(self, tunnel: InboundTunnel, abuse: Abuse, message: str) -> None:
            """The peer spent a flood budget."""

        def tunnel_ready(self, tunnel: InboundTunnel) -> None:
            """The peer is verified; requests may come."""

        def tunnel_closed(self, tunnel: InboundTunnel) -> None:
            """The tunnel is over; ``failure`` says why, also for one that never got through its handshake."""


class InboundTunnel(TunnelSession):
    """A tunnel that a peer dialled. ``local`` and ``source`` are (ip, port) of the accepted socket."""

    def __init__(
        self,
        poller: Poller,
        user: InboundUser,
        sock: socket.SocketType,
        *,
        settings: TunnelSettings,
        limits: GuardLimits,
        local: tuple[str, int],
        source: tuple[str, int],
        remote: str,
    ) -> None:
        super().__init__(poller, settings=settings, limits=limits, remote=remote)
        self.tls.connected(sock)
        self._user = user
        self.local = local
        self.source = source
        self._deadline: asyncio.TimerHandle | None = None

    def start(self, context: SSL.Context, expectation: PeerExpectation, *, timeout: float) -> None:
        """Begin the handshake; TLS and the HTTP/2 preface must be done within ``timeout`` seconds."""
        self._deadline = self._loop.call_later(timeout, self._too_slow, timeout)
        self.tls.start(open_session(context, "server", expectation))

    def refuse(self, failure: ZtunError) -> None:
        """Close before the handshake: nobody can answer for this address."""
        self.failure = failure
        self.tls.abort()

    def drain(self) -> None:
        """Ask the peer to move on; streams under way continue."""
        if self.connection is not None:
            self.connection.drain(self._loop.time())

    def _too_slow(self, timeout: float) -> None:
        stage = "TLS handshake" if self.connection is None else "HTTP/2 preface"
        kind = TunnelTlsError if self.connection is None else TunnelError
        code = "tls_timeout" if self.connection is None else "h2_preface_timeout"
        self.failure = kind(code, f"the {stage} was not complete within {timeout:g} s", peer=self.remote)
        self.tls.abort()

    # -- from below ------------------------------------------------------------------------------------------

    def handshake_done(self, transport: TlsTransport) -> None:
        """Start HTTP/2."""
        super().handshake_done(transport)
        self._user.tunnel_ready(self)

    def settings_received(self) -> None:
        """The preface is complete."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def request_received(self, stream: TunnelStream, headers: Headers) -> None:
        """Pass it on."""
        self._user.tunnel_request(self, stream, headers)

    def guard_tripped(self, abuse: Abuse, message: str) -> None:
        """Report the peer."""
        self._user.tunnel_guard(self, abuse, message)

    def session_closed(self) -> None:
        """Forget the tunnel."""
        self.settings_received()
        self._user.tunnel_closed(self)
