"""A tunnel to a local pod: check the request, ask authorization, dial the application, answer, relay."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.peer import PeerExpectation
from ztun.errors import CaptureError, CertificateRevoked, ConnectError, PolicyDenied, RelayError, ZtunError
from ztun.hbone.connect import NotConnect, parse_request, status_headers
from ztun.hbone.wire import ErrorCode
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.baggage import parse_forwarded_host
from ztun.mesh.inbound import InboundRefused, decide_inbound
from ztun.mesh.model import canonical_ip, join_host_port
from ztun.net.inbound import InboundTunnel
from ztun.net.proxy_protocol import proxy_v2_header
from ztun.net.relay import Relay
from ztun.proxy.connections import LiveConnection
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from certs.bundle import TrustBundle
    from ztun.hbone.connect import ConnectRequest
    from ztun.hbone.guard import Abuse
    from ztun.hbone.headers import Headers
    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.inbound import InboundTarget
    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.proxy.plane import Plane

MAX_HANDSHAKES = 1024  # tunnels that have not shown a certificate yet, per listener
_UNAUTHORIZED = 401


@dataclass(slots=True)
class _Listener:
    """The tunnels accepted for one pod."""

    uid: str
    tunnels: dict[InboundTunnel, None]
    handshakes: int = 0


class Inbound:
    """Serves HBONE for the local pods."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._listeners: dict[str, _Listener] = {}
        self._of: dict[InboundTunnel, _Listener] = {}
        self._gone: asyncio.Future[None] | None = None
        self._log = get_logger("proxy::inbound")

    # -- tunnels ---------------------------------------------------------------------------------------------

    def accept(self, uid: str, local: tuple[str, int], source: tuple[str, int]) -> asyncio.BaseProtocol:
        """Protocol for a socket accepted on the HBONE port of the pod ``uid``."""
        plane = self._plane
        tunnel = InboundTunnel(
            plane.loop,
            plane.buffers,
            self,
            settings=plane.settings.tunnel,
            limits=plane.settings.guard,
            local=(canonical_ip(local[0]), local[1]),
            source=(canonical_ip(source[0]), source[1]),
            remote=join_host_port(canonical_ip(source[0]), source[1]),
        )
        listener = self._listeners.setdefault(uid, _Listener(uid, {}))
        listener.tunnels[tunnel] = None
        self._of[tunnel] = listener
        listener.handshakes += 1
        plane.metrics.sockets_open.add("destination")
        plane.spawn(self._start(tunnel, listener))
        return tunnel.tls

    async def _start(self, tunnel: InboundTunnel, listener: _Listener) -> None:
        plane = self._plane
        local = plane.snapshot.workload_by_uid(listener.uid)
        if local is None or plane.draining or listener.handshakes > MAX_HANDSHAKES:
            tunnel.refuse(CaptureError("no_workload", "no local workload takes tunnels at this address"))
            return
        try:
            certificate = await plane.certificate(local.identity)
            context = plane.contexts.server(certificate)
        except ZtunError as error:
            tunnel.refuse(error)
            return
        timeouts = plane.settings.tunnel_timeouts
        tunnel.start(
            context,
            PeerExpectation(None, local.trust_domain),
            timeout=timeouts.tls_handshake + timeouts.h2_preface,
        )

    def tunnel_ready(self, tunnel: InboundTunnel) -> None:
        """The peer is verified."""
        self._of[tunnel].handshakes -= 1
        self._plane.metrics.tunnels_open.add("server")
        if self._plane.draining:
            tunnel.drain()

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
            if tunnel.failure is not None:
                self._log.debug("tunnel ended", peer=tunnel.remote, error=tunnel.failure)
                if not tunnel.connection.ready:
                    self._refused(tunnel, tunnel.failure)
            return
        listener.handshakes -= 1
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

    async def closed(self) -> None:
        """Wait until the last tunnel is closed, its last byte sent."""
        while self._of:
            self._gone = self._plane.loop.create_future()
            await self._gone

    def cut_revoked(self, bundle: TrustBundle) -> int:
        """Close the tunnels of peers that were revoked; gives how many."""
        revoked = [one for one in self._of if one.peer is not None and bundle.is_revoked(one.peer.chain)]
        for tunnel in revoked:
            self._plane.metrics.crl_rejections.inc("destination")
            tunnel.cut(
                CertificateRevoked("peer_revoked", "the peer's certificate was revoked", peer=tunnel.remote)
            )
        return len(revoked)

    # -- requests --------------------------------------------------------------------------------------------

    def tunnel_request(self, tunnel: InboundTunnel, stream: TunnelStream, headers: Headers) -> None:
        """Serve a CONNECT request; its slot is held until the connection has ended."""
        self._plane.spawn(self._serve(tunnel, stream, headers))

    async def _serve(self, tunnel: InboundTunnel, stream: TunnelStream, headers: Headers) -> None:
        plane = self._plane
        started = plane.loop.time()
        request: ConnectRequest | None = None
        connection: LiveConnection | None = None
        try:
            local = self._local(tunnel)
            request = _read(headers)
            target = decide_inbound(
                plane.snapshot,
                local,
                tunnel.local[0],
                request.authority,
                network=plane.settings.network,
                forwarded_host=parse_forwarded_host(request.forwarded) if request.forwarded else None,
            )
            connection = self._live(tunnel, local, request, target, started)
            plane.connections.opened(connection)
            app = await self._reach(tunnel, local, connection, target)
        except ZtunError as error:
            self._refuse(tunnel, stream, request, connection, error)
            return
        except asyncio.CancelledError:
            self._refuse(tunnel, stream, request, connection, RelayError("shutdown", "the proxy shuts down"))
            raise
        assert tunnel.connection is not None
        baggage = plane.baggage(local) if plane.settings.response_baggage else ""
        tunnel.connection.respond(stream, status_headers(200, baggage=baggage), end_stream=False)
        live = connection

        def finish(error: ZtunError | None) -> None:
            plane.connections.finished(live, error)
            self._release(tunnel)

        live.relay = Relay(stream, app, finish)
        live.relay.start()

    def _local(self, tunnel: InboundTunnel) -> Workload:
        listener = self._of.get(tunnel)
        local = self._plane.snapshot.workload_by_uid(listener.uid) if listener is not None else None
        if local is None:
            raise InboundRefused(503, "no_workload", "the workload of this address is gone")
        return local

    async def _reach(
        self, tunnel: InboundTunnel, local: Workload, connection: LiveConnection, target: InboundTarget
    ) -> AppSocket:
        """Ask authorization, then dial the application from the client's address."""
        plane = self._plane
        judged = plane.snapshot
        self._authorize(tunnel, local, connection)
        app, dialled = await plane.dial_plain((target.ip, target.port), tunnel.source[0])
        if plane.snapshot is not judged:
            # a reload judges established connections only; this one was between the two
            try:
                self._authorize(tunnel, local, connection)
            except PolicyDenied:
                app.abort(ErrorCode.CANCEL)
                raise
        if not dialled.source_kept:
            if plane.settings.require_source:
                app.abort(ErrorCode.CANCEL)
                raise ConnectError(
                    "source_not_kept",
                    f"the application cannot be dialled from {tunnel.source[0]}",
                    hint="the proxy needs NET_ADMIN, or unset ENABLE_ORIG_SRC",
                )
            self._log.warning(
                "the client's address is not kept, the application sees the proxy's",
                workload=f"{local.namespace}/{local.name}",
                hint="the proxy needs NET_ADMIN",
            )
        if target.proxy_destination is not None:
            assert tunnel.peer is not None
            header = proxy_v2_header(tunnel.source, target.proxy_destination, str(tunnel.peer.identity))
            app.offer(memoryview(header))
        return app

    def _authorize(self, tunnel: InboundTunnel, local: Workload, connection: LiveConnection) -> None:
        assert connection.attempt is not None
        verdict = authorize(self._plane.snapshot.policies_for(local), connection.attempt)
        for policy in verdict.dry_run:
            self._log.info("dry-run policy matched", policy=policy, peer=tunnel.remote)
        if not verdict.allowed:
            raise PolicyDenied(
                "policy_rejection",
                f"connection closed due to policy rejection: {verdict.reason}",
                hint="an authorization policy of the destination does not allow this source",
                peer=tunnel.remote,
            )

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

    @staticmethod
    def _release(tunnel: InboundTunnel) -> None:
        if tunnel.connection is not None:
            tunnel.connection.release_slot()

    def _live(
        self,
        tunnel: InboundTunnel,
        local: Workload,
        request: ConnectRequest,
        target: InboundTarget,
        started: float,
    ) -> LiveConnection:
        assert tunnel.peer is not None
        plane = self._plane
        identity = tunnel.peer.identity
        source = None
        if request.forwarded_network in (None, plane.settings.network):
            source = plane.snapshot.workload_by_address(plane.settings.network, tunnel.source[0])
            if source is not None and source.identity != identity:
                source = None  # the address has moved; the certificate is what counts
        return LiveConnection(
            direction="inbound",
            local=local,
            source_addr=tunnel.remote,
            original_destination=request.authority,
            actual_destination=join_host_port(*tunnel.local),
            hbone_addr=request.authority,
            application=join_host_port(target.ip, target.port),
            started=started,
            attempt=Attempt(tunnel.source[0], identity, target.ip, target.port),
            peer=tunnel.peer,
            labels=TrafficLabels(
                "destination", source, local, target.service, identity, local.identity, True
            ),
        )


def _read(headers: Headers) -> ConnectRequest:
    try:
        return parse_request(headers)
    except NotConnect as error:
        raise InboundRefused(400, "not_connect", str(error)) from error
