"""A tunnel to a local pod: check the request, ask authorization, dial the application, answer, relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.errors import PolicyDenied
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.baggage import NOTHING, parse_baggage, parse_forwarded_host
from ztun.mesh.inbound import decide_inbound
from ztun.mesh.model import join_host_port
from ztun.net.proxy_protocol import proxy_v2_header
from ztun.proxy.application import ApplicationDial
from ztun.proxy.connections import LiveConnection
from ztun.proxy.tunnels import Approach, TunnelServer
from ztun.telemetry.labels import TrafficLabels

if TYPE_CHECKING:
    from ztun.hbone.connect import ConnectRequest
    from ztun.mesh.baggage import Baggage
    from ztun.mesh.inbound import InboundTarget
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.app_socket import AppSocket
    from ztun.net.inbound import InboundTunnel


class Inbound(TunnelServer):
    """Serves HBONE for the local pods."""

    def _admit(
        self, tunnel: InboundTunnel, local: Workload, request: ConnectRequest, started: float
    ) -> tuple[LiveConnection, Approach]:
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
        return connection, _ToApplication(self, tunnel, local, connection, target)

    def dial(self, tunnel: InboundTunnel, target: InboundTarget) -> ApplicationDial:
        """Begin to connect to the application. Raises :class:`ConnectError`."""
        # a PROXY protocol header is believed because it comes from the pod itself; the client's address is in it
        source_ip = tunnel.source[0] if target.proxy_destination is None else target.ip
        return ApplicationDial(self._plane, self._site, (target.ip, target.port), source_ip)

    def authorize(self, tunnel: InboundTunnel, local: Workload, connection: LiveConnection) -> Snapshot:
        """Ask the policies; gives whose they were. Raises :class:`PolicyDenied`."""
        snapshot = self._plane.snapshot
        assert connection.attempt is not None
        verdict = authorize(snapshot.policies_for(local), connection.attempt)
        for policy in verdict.dry_run:
            self._log.info("dry-run policy matched", policy=policy, peer=tunnel.remote)
        if not verdict.allowed:
            raise PolicyDenied(
                "policy_rejection",
                f"connection closed due to policy rejection: {verdict.reason}",
                hint="an authorization policy of the destination does not allow this source",
                peer=tunnel.remote,
            )
        return snapshot

    def changed_since(self, snapshot: Snapshot) -> bool:
        """Whether there are other policies now."""
        return self._plane.snapshot is not snapshot

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
        source: Workload | Baggage | None = None
        if request.forwarded_network in (None, plane.settings.network):
            source = plane.snapshot.workload_by_address(plane.settings.network, tunnel.source[0])
            if source is not None and source.identity != identity:
                source = None  # the address has moved; the certificate is what counts
        if source is None and request.baggage and plane.settings.response_baggage:
            claimed = parse_baggage(request.baggage)
            source = claimed if claimed != NOTHING else None
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


class _ToApplication:
    """The way to the application of a local pod: authorization, then a dial from the client's address."""

    __slots__ = ("_connection", "_dial", "_inbound", "_judged", "_local", "_target", "_tunnel")

    def __init__(
        self,
        inbound: Inbound,
        tunnel: InboundTunnel,
        local: Workload,
        connection: LiveConnection,
        target: InboundTarget,
    ) -> None:
        self._inbound = inbound
        self._tunnel = tunnel
        self._local = local
        self._connection = connection
        self._target = target
        self._dial: ApplicationDial | None = None
        self._judged: Snapshot | None = None

    def at_once(self) -> AppSocket | None:
        """Ask authorization and dial; the application is on this machine, so that is mostly all."""
        self._judged = self._inbound.authorize(self._tunnel, self._local, self._connection)
        self._dial = self._inbound.dial(self._tunnel, self._target)
        return self._app(self._dial) if self._dial.connected else None

    async def wait(self) -> AppSocket:
        """Wait for the dial; policies that came meanwhile are asked too, since a reload judges what is joined."""
        assert self._dial is not None
        assert self._judged is not None
        await self._dial.wait()
        if self._inbound.changed_since(self._judged):
            try:
                self._inbound.authorize(self._tunnel, self._local, self._connection)
            except PolicyDenied:
                self._dial.reset()
                raise
        return self._app(self._dial)

    def _app(self, dial: ApplicationDial) -> AppSocket:
        app = dial.take()
        if self._target.proxy_destination is not None:
            assert self._tunnel.peer is not None
            identity = str(self._tunnel.peer.identity)
            app.offer(
                memoryview(proxy_v2_header(self._tunnel.source, self._target.proxy_destination, identity))
            )
        return app
