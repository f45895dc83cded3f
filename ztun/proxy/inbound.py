"""A tunnel to a local pod: check the request, ask authorization, dial the application, answer, relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.errors import PolicyDenied
from ztun.hbone.wire import ErrorCode
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.baggage import parse_forwarded_host
from ztun.mesh.inbound import decide_inbound
from ztun.mesh.model import join_host_port
from ztun.net.proxy_protocol import proxy_v2_header
from ztun.proxy.connections import LiveConnection
from ztun.proxy.tunnels import TunnelServer
from ztun.telemetry.labels import TrafficLabels

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ztun.hbone.connect import ConnectRequest
    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.inbound import InboundTarget
    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.net.inbound import InboundTunnel


class Inbound(TunnelServer):
    """Serves HBONE for the local pods."""

    def _admit(
        self, tunnel: InboundTunnel, local: Workload, request: ConnectRequest, started: float
    ) -> tuple[LiveConnection, Callable[[], Coroutine[None, None, AppSocket | TunnelStream]]]:
        plane = self._plane
        target = decide_inbound(
            plane.snapshot,
            local,
            tunnel.local[0],
            request.authority,
            network=plane.settings.network,
            forwarded_host=parse_forwarded_host(request.forwarded) if request.forwarded else None,
        )
        connection = self._live(tunnel, local, request, target, started)
        return connection, lambda: self._reach(tunnel, local, connection, target)

    async def _reach(
        self, tunnel: InboundTunnel, local: Workload, connection: LiveConnection, target: InboundTarget
    ) -> AppSocket:
        """Ask authorization, then dial the application from the client's address."""
        plane = self._plane
        judged = plane.snapshot
        self._authorize(tunnel, local, connection)
        # a PROXY protocol header is believed because it comes from the pod itself; the client's address is in it
        source_ip = tunnel.source[0] if target.proxy_destination is None else target.ip
        app = await self._site.dial_application((target.ip, target.port), source_ip)
        if plane.snapshot is not judged:
            # a reload judges established connections only; this one was between the two
            try:
                self._authorize(tunnel, local, connection)
            except PolicyDenied:
                app.abort(ErrorCode.CANCEL)
                raise
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
            site=self._site,
            labels=TrafficLabels(
                "destination", source, local, target.service, identity, local.identity, True
            ),
        )
