"""The accepting side of HBONE: tunnels to local workloads, from their handshake to their end."""

from __future__ import annotations

import abc
import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from certs.peer import PeerExpectation
from ztun.errors import CaptureError, CertificateRevoked, PolicyDenied, RelayError, TunnelError, ZtunError
from ztun.hbone.connect import NotConnect, parse_request, status_headers
from ztun.mesh.inbound import InboundRefused
from ztun.mesh.model import canonical_ip, join_host_port
from ztun.net.inbound import InboundTunnel
from ztun.net.relay import Relay
from ztun.proxy.outbound import wait_for_workload
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from certs.bundle import TrustBundle
    from certs.spiffe import SpiffeId
    from ztun.hbone.connect import ConnectRequest
    from ztun.hbone.guard import Abuse
    from ztun.hbone.headers import Headers
    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.proxy.connections import LiveConnection
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site

_UNAUTHORIZED = 401
MAX_HANDSHAKES = 1024  # tunnels that have not shown a certificate yet, per listener
MAX_TUNNELS_PER_PEER = (
    1024  # of one identity at one address, per listener: 100,000 streams at ztunnel's 100 each
)


@dataclass(slots=True)
class _Listener:
    """The tunnels accepted for one pod."""

    uid: str
    tunnels: dict[InboundTunnel, None]
    unproven: dict[InboundTunnel, None] = field(default_factory=dict)
    """Those of them that have not shown a certificate yet, the oldest first."""
    peers: dict[tuple[SpiffeId, str], int] = field(default_factory=dict)
    """How many tunnels each identity has from each address: flood budgets are per tunnel, so these are counted."""


class Approach(Protocol):
    """How the server end of a request is made. Both raise :class:`ZtunError`."""

    def at_once(self) -> AppSocket | TunnelStream | None:
        """The server end, if nothing has to be waited for; else None, and ``wait`` follows."""

    async def wait(self) -> AppSocket | TunnelStream:
        """The server end, after a while."""


class TunnelServer(abc.ABC):
    """Accepts tunnels for local workloads; a subclass serves their requests."""

    def __init__(
        self, plane: Plane, site: Site | None = None, find: Callable[[str], Workload | None] | None = None
    ) -> None:
        """``find`` gives the workload that tunnels accepted for a uid are for, None while it is not known."""
        self._plane = plane
        self._site = site or plane.home
        self._find = find or (lambda uid: plane.snapshot.workload_by_uid(uid))
        self._listeners: dict[str, _Listener] = {}
        self._of: dict[InboundTunnel, _Listener] = {}
        self._gone: asyncio.Future[None] | None = None
        self._log = get_logger("proxy::inbound")

    # -- tunnels ---------------------------------------------------------------------------------------------

    def accept(
        self, uid: str, sock: socket.SocketType, local: tuple[str, int], source: tuple[str, int]
    ) -> None:
        """Take a socket accepted on the HBONE port of the pod ``uid``."""
        plane = self._plane
        tunnel = InboundTunnel(
            plane.poller,
            self,
            sock,
            settings=plane.settings.tunnel,
            limits=plane.settings.guard,
            local=(canonical_ip(local[0]), local[1]),
            source=(canonical_ip(source[0]), source[1]),
            remote=join_host_port(canonical_ip(source[0]), source[1]),
        )
        listener = self._listeners.setdefault(uid, _Listener(uid, {}))
        listener.tunnels[tunnel] = None
        self._of[tunnel] = listener
        listener.unproven[tunnel] = None
        if len(listener.unproven) > MAX_HANDSHAKES:
            # A peer of the mesh needs milliseconds: who has waited longest is none, and keeps nobody else out.
            oldest = next(iter(listener.unproven))
            del listener.unproven[oldest]
            oldest.refuse(
                CaptureError(
                    "too_many_handshakes", "too many newer tunnels have not shown a certificate either"
                )
            )
        plane.metrics.sockets_open.add("destination")
        self._site.spawn(self._start(tunnel, listener))

    async def _start(self, tunnel: InboundTunnel, listener: _Listener) -> None:
        plane = self._plane
        try:
            local = await wait_for_workload(
                plane, lambda: self._find(listener.uid), join_host_port(*tunnel.local)
            )
            certificate = await plane.certificate(local.identity)
            context = plane.contexts.server(certificate)
        except ZtunError as error:
            tunnel.refuse(error)
            return
        except Exception as error:
            tunnel.refuse(CaptureError("internal_error", f"unexpected error: {error!r}"))
            raise
        if tunnel.is_closed:
            return  # the peer did not wait
        timeouts = plane.settings.tunnel_timeouts
        tunnel.start(
            context,
            PeerExpectation(None, local.trust_domain),
            timeout=timeouts.tls_handshake + timeouts.h2_preface,
        )

    def tunnel_ready(self, tunnel: InboundTunnel) -> None:
        """The peer is verified."""
        listener = self._of[tunnel]
        listener.unproven.pop(tunnel, None)
        self._plane.metrics.tunnels_open.add("server")
        peer = _peer(tunnel)
        listener.peers[peer] = listener.peers.get(peer, 0) + 1
        if listener.peers[peer] > MAX_TUNNELS_PER_PEER:
            message = f"{peer[0]} has {MAX_TUNNELS_PER_PEER} tunnels from this address already"
            tunnel.cut(TunnelError("too_many_tunnels", message, peer=tunnel.remote))
        # its handshake may have begun before the revocation list came
        self.cut_revoked(self._plane.store.bundle, tunnel)

    def tunnel_closed(self, tunnel: InboundTunnel) -> None:
        """Count it, and say why one failed."""
        metrics = self._plane.metrics
        metrics.sockets_open.add("destination", by=-1)
        listener = self._of.pop(tunnel)
        listener.tunnels.pop(tunnel, None)
        if not listener.tunnels:
            self._listeners.pop(listener.uid, None)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if tunnel.connection is not None:
            metrics.tunnels_open.add("server", by=-1)
            _count_down(listener.peers, _peer(tunnel))
            if tunnel.failure is not None:
                self._log.debug("tunnel ended", peer=tunnel.remote, error=tunnel.failure)
                if not tunnel.connection.ready:
                    self._refused(tunnel, tunnel.failure)
            return
        listener.unproven.pop(tunnel, None)
        failure = tunnel.failure
        if failure is not None:
            metrics.handshake_failures.inc("server", failure.code)
            if isinstance(failure, CertificateRevoked):
                metrics.crl_rejections.inc("destination")
            self._refused(tunnel, failure)

    def _refused(self, tunnel: InboundTunnel, failure: ZtunError) -> None:
        self._plane.connections.refused("inbound", tunnel.remote, join_host_port(*tunnel.local), failure)

    def tunnel_guard(self, tunnel: InboundTunnel, abuse: Abuse, message: str) -> None:
        """A peer spent a flood budget."""
        self._plane.guard_tripped(tunnel.remote, abuse, message)

    def tick(self, now: float) -> None:
        """Once a second."""
        for tunnel in list(self._of):
            if self._plane.draining:
                tunnel.drain()  # one that came at the last moment was let in for what it brought
            tunnel.tick(now)

    def drain(self) -> None:
        """Ask all peers to move on."""
        for tunnel in list(self._of):
            tunnel.drain()

    def drop(self, uid: str, failure: ZtunError) -> None:
        """A pod is gone: cut its tunnels."""
        listener = self._listeners.get(uid)
        if listener is not None:
            for tunnel in list(listener.tunnels):
                tunnel.cut(failure)

    def close(self, failure: ZtunError) -> None:
        """Cut everything."""
        for tunnel in list(self._of):
            tunnel.cut(failure)

    def abort(self) -> None:
        """Close the sockets without another word."""
        for tunnel in list(self._of):
            tunnel.abort()

    async def closed(self) -> None:
        """Wait until the last tunnel is closed, its last byte sent."""
        while self._of:
            self._gone = self._plane.loop.create_future()
            await self._gone

    def cut_revoked(self, bundle: TrustBundle, *tunnels: InboundTunnel) -> int:
        """Close those of the tunnels, of all if none is given, whose peers were revoked; gives how many."""
        cut = 0
        for tunnel in tunnels or tuple(self._of):
            if tunnel.cut_if_revoked(bundle):
                self._plane.metrics.crl_rejections.inc("destination")
                cut += 1
        return cut

    # -- for subclasses --------------------------------------------------------------------------------------

    def tunnel_request(self, tunnel: InboundTunnel, stream: TunnelStream, headers: Headers) -> None:
        """Serve a CONNECT request; its slot is held until the connection has ended."""
        self._site.attempt(lambda: self._take(tunnel, stream, headers))

    @abc.abstractmethod
    def _admit(
        self, tunnel: InboundTunnel, local: Workload, request: ConnectRequest, started: float
    ) -> tuple[LiveConnection, Approach]:
        """Decide on a request: the connection to account for, and how to reach what it asks for.

        Raises :class:`ZtunError`.
        """

    def _take(self, tunnel: InboundTunnel, stream: TunnelStream, headers: Headers) -> None:
        plane = self._plane
        request: ConnectRequest | None = None
        connection: LiveConnection | None = None
        try:
            local = self._local(tunnel)
            request = _read(headers)
            self._site.check_room()
            connection, approach = self._admit(tunnel, local, request, plane.loop.time())
            plane.connections.opened(connection)
            server = approach.at_once()
        except ZtunError as error:
            self._refuse(tunnel, stream, request, connection, error)
            return
        except Exception as error:
            unexpected = RelayError("internal_error", f"unexpected error: {error!r}")
            self._refuse(tunnel, stream, request, connection, unexpected)
            raise
        if server is not None:
            self._join(tunnel, stream, local, connection, server)
        else:
            self._site.spawn(self._wait(tunnel, stream, request, local, connection, approach))

    async def _wait(
        self,
        tunnel: InboundTunnel,
        stream: TunnelStream,
        request: ConnectRequest,
        local: Workload,
        connection: LiveConnection,
        approach: Approach,
    ) -> None:
        try:
            server = await approach.wait()
        except ZtunError as error:
            self._refuse(tunnel, stream, request, connection, error)
            return
        except asyncio.CancelledError:
            self._refuse(tunnel, stream, request, connection, RelayError("shutdown", "the proxy shuts down"))
            raise
        self._join(tunnel, stream, local, connection, server)

    def _join(
        self,
        tunnel: InboundTunnel,
        stream: TunnelStream,
        local: Workload,
        connection: LiveConnection,
        server: AppSocket | TunnelStream,
    ) -> None:
        """Answer 200 and let bytes flow."""
        plane = self._plane
        assert tunnel.connection is not None
        baggage = plane.baggage(local) if plane.settings.response_baggage else ""
        tunnel.connection.respond(stream, status_headers(200, baggage=baggage), end_stream=False)

        def finish(error: ZtunError | None) -> None:
            plane.connections.finished(connection, error)
            self._release(tunnel)

        connection.relay = Relay(stream, server, finish)
        connection.relay.start()

    def _refuse(
        self,
        tunnel: InboundTunnel,
        stream: TunnelStream,
        request: ConnectRequest | None,
        connection: LiveConnection | None,
        error: ZtunError,
    ) -> None:
        status = error.status if isinstance(error, InboundRefused) else 503
        if isinstance(error, PolicyDenied):
            status = _UNAUTHORIZED
        if connection is not None:
            self._plane.connections.finished(connection, error)
        else:
            target = request.authority if request is not None else join_host_port(*tunnel.local)
            self._plane.connections.refused("inbound", tunnel.remote, target, error)
        if tunnel.connection is not None:
            tunnel.connection.respond(stream, status_headers(status), end_stream=True)
        self._release(tunnel)

    def _local(self, tunnel: InboundTunnel) -> Workload:
        listener = self._of.get(tunnel)
        local = self._find(listener.uid) if listener is not None else None
        if local is None:
            raise InboundRefused(503, "no_workload", "the workload of this address is gone")
        return local

    @staticmethod
    def _release(tunnel: InboundTunnel) -> None:
        if tunnel.connection is not None:
            tunnel.connection.release_slot()


def _peer(tunnel: InboundTunnel) -> tuple[SpiffeId, str]:
    assert tunnel.peer is not None
    return tunnel.peer.identity, tunnel.source[0]


def _count_down(counts: dict[tuple[SpiffeId, str], int], key: tuple[SpiffeId, str]) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _read(headers: Headers) -> ConnectRequest:
    try:
        return parse_request(headers)
    except NotConnect as error:
        raise InboundRefused(400, "not_connect", str(error)) from error
