"""What both ends of a tunnel share: a TLS transport with an HTTP/2 connection on top, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certs.context import handshake_failure, peer
from ztun.errors import CertificateRevoked, TunnelError, TunnelTlsError, ZtunError
from ztun.hbone.connection import TunnelConnection
from ztun.hbone.wire import ErrorCode
from ztun.net.tls import TlsTransport

if TYPE_CHECKING:
    from certs.bundle import TrustBundle
    from certs.peer import PeerIdentity
    from ztun.hbone.guard import Abuse, GuardLimits
    from ztun.hbone.headers import Headers
    from ztun.hbone.settings import TunnelSettings
    from ztun.hbone.stream import TunnelStream
    from ztun.net.poller import Poller


class TunnelSession:
    """One end of one tunnel. Subclasses say what a client and what a server do with it.

    ``failure`` is set once, when the tunnel is over. ``remote`` is the peer's ``ip:port``.
    """

    client_side = False

    def __init__(
        self,
        poller: Poller,
        *,
        settings: TunnelSettings,
        limits: GuardLimits,
        remote: str,
    ) -> None:
        self._loop = poller.loop
        self._settings = settings
        self._limits = limits
        self._holdings = poller.holdings
        self.tls = TlsTransport(poller, self)
        self.connection: TunnelConnection | None = None
        self.peer: PeerIdentity | None = None
        self.remote = remote
        self.failure: ZtunError | None = None
        self.closed_reason = ""
        self.is_closed = False

    def cut(self, failure: ZtunError) -> None:
        """Close at once, with every stream on it."""
        self.failure = self.failure or failure
        if self.connection is not None:
            self.connection.terminate(ErrorCode.NO_ERROR, str(failure))
        else:
            self.tls.abort()

    def abort(self) -> None:
        """Close the socket without another word, also one that lingers."""
        self.tls.abort()

    def cut_if_revoked(self, bundle: TrustBundle) -> CertificateRevoked | None:
        """Close at once if the peer's certificate is revoked by a list that came after it was verified; gives why."""
        if self.peer is None or not bundle.is_revoked(self.peer.chain):
            return None
        revoked = CertificateRevoked("peer_revoked", "the peer's certificate was revoked", peer=self.remote)
        self.cut(revoked)
        return revoked

    # -- from TLS --------------------------------------------------------------------------------------------

    def handshake_done(self, transport: TlsTransport) -> None:
        """Start HTTP/2: the peer is who we expect."""
        assert transport.session is not None
        self.peer = peer(transport.session)
        self.connection = TunnelConnection(
            transport,
            self,
            client=self.client_side,
            now=self._loop.time(),
            settings=self._settings,
            limits=self._limits,
            holdings=self._holdings,
        )

    def received(self, data: memoryview, now: float) -> None:
        """Decrypted bytes."""
        if self.connection is not None:
            self.connection.receive(data, now)

    def congested(self) -> None:
        """The socket is full."""
        if self.connection is not None:
            self.connection.transport_congested()

    def drained(self) -> None:
        """The socket takes bytes again."""
        if self.connection is not None:
            self.connection.transport_drained()

    def closed(self, error: Exception | None) -> None:
        """The socket is gone."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.failure is None and (error is not None or self.connection is None):
            self.failure = self._describe(error)
        if self.connection is not None:
            reason = str(self.failure) if self.failure is not None else "the peer closed the tunnel"
            self.connection.transport_lost(reason)
        self.session_closed()

    def _describe(self, error: Exception | None) -> ZtunError:
        session = self.tls.session
        if session is not None and error is not None and not isinstance(error, OSError):
            why = handshake_failure(session, error)
            kind = CertificateRevoked if why.code == "peer_revoked" else TunnelTlsError
            return kind(why.code, why.message, hint=why.hint, peer=self.remote)
        if self.connection is None:
            return TunnelTlsError(
                "tls_closed",
                "the connection ended during the TLS handshake",
                hint="see the peer's log",
                peer=self.remote,
            )
        return TunnelError("tunnel_lost", f"the tunnel's connection was lost: {error}", peer=self.remote)

    # -- from HTTP/2 -----------------------------------------------------------------------------------------

    def request_received(self, stream: TunnelStream, headers: Headers) -> None:
        """Only a server is asked."""

    def settings_received(self) -> None:
        """The peer's SETTINGS."""

    def stream_closed(self) -> None:
        """One stream less."""

    def goaway_received(self, code: int, debug: bytes) -> None:
        """The peer goes away."""

    def guard_tripped(self, abuse: Abuse, message: str) -> None:
        """The peer spent a flood budget."""

    def connection_closed(self, code: int, reason: str) -> None:
        """HTTP/2 is over; the transport closes by itself."""
        self.closed_reason = reason
        if self.failure is None and code:
            self.failure = TunnelError("tunnel_closed", reason, peer=self.remote)

    # -- for subclasses --------------------------------------------------------------------------------------

    def session_closed(self) -> None:
        """Everything below is closed."""

    def tick(self, now: float) -> None:
        """About once a second."""
        if self.connection is not None:
            self.connection.tick(now)
