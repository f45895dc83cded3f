"""A connection from outside: which rule takes it, where its TLS ends, and then as any connection into the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from waypoint.gateway.gatekeeper import admit, policies_of
from waypoint.gateway.termination import Terminator, server_key
from waypoint.routes.listeners import ListenerKind, TlsTreatment
from ztun.errors import CaptureError, CertificateRevoked, RouteError, TunnelTlsError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.authorization import Attempt
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.peek import peek_client_hello
from ztun.net.tls_socket import TlsSocket
from ztun.proxy.destinations import Destinations, destination_of
from ztun.proxy.outbound import Departure, Outbound, Way
from ztun.routing import Connection
from ztun.traffic.cluster import Asker

if TYPE_CHECKING:
    import socket

    from certs.peer import PeerIdentity
    from waypoint.gateway.places import Address, Place
    from waypoint.gateway.view import View
    from ztun.mesh.lookup import OutboundRoute
    from ztun.net.listeners import Accept
    from ztun.proxy.connections import LiveConnection
    from ztun.proxy.destinations import Lease
    from ztun.proxy.plane import Plane
    from ztun.proxy.routers import CompiledRouter
    from ztun.routing import Destination


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection that was accepted, and the state of the gateway at that moment."""

    view: View
    place: Place
    source: Address
    local: Address
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted(Departure):
    """A connection that policies let in, with what they saw of it, and who the client is if its TLS ended here."""

    attempt: Attempt
    peer: PeerIdentity | None = None


class Ingress(Outbound):
    """Serves what the listeners accept. ``view`` is replaced on a reload."""

    def __init__(self, plane: Plane, routers: CompiledRouter) -> None:
        super().__init__(plane)
        self._routers = routers
        self._destinations = Destinations(
            plane.loop.time, plane.rng, network=plane.settings.network, metrics=plane.metrics
        )
        self.view: View | None = None

    def accept(self, address: Address) -> Accept:
        """What takes the connections of one listening socket."""

        def accept(sock: socket.SocketType, local: Address, source: Address) -> None:
            plane, view = self._plane, self.view
            client = AppSocket(plane.poller, sock)
            place = view.places.get(address) if view is not None else None
            if view is None or place is None:
                gone = RouteError(
                    "route_no_listener", "the listener was removed by a change of configuration"
                )
                self._refused(client, local, source, gone)
                return
            arrival = Arrival(view, place, source, local, plane.loop.time())
            serve = self._serve_tls if place.kind is ListenerKind.TLS else self._serve_tcp
            plane.home.spawn(serve(client, arrival))

        return accept

    async def _serve_tcp(self, client: AppSocket, arrival: Arrival) -> None:
        try:
            destination = self._choose(arrival, "tcp", "")
            admitted, way = self._admit(client, arrival, destination, None)
        except ZtunError as error:
            self._refused(client, arrival.local, arrival.source, error)
            return
        await self._carry(admitted, way)

    async def _serve_tls(self, client: AppSocket, arrival: Arrival) -> None:
        """The server name decides; the bytes go on as they came, or the TLS ends here."""
        plane = self._plane
        peer: PeerIdentity | None = None
        try:
            hello = await peek_client_hello(client, plane.settings.timeouts.client_hello)
            if hello is None:
                raise CaptureError(
                    "no_client_hello",
                    "the client does not speak TLS, or not within its time",
                    hint="ZTUN_CLIENT_HELLO_TIMEOUT sets the time; the listener is for TLS",
                )
            destination = self._choose(arrival, "tls", hello.server_name)
            terminator = _terminator(arrival, hello.server_name)
            if terminator is not None:
                client, peer = await self._terminate(client, terminator)
            admitted, way = self._admit(client, arrival, destination, peer)
        except ZtunError as error:
            self._refused(client, arrival.local, arrival.source, error)
            return
        await self._carry(admitted, way)

    def _refused(self, client: AppSocket, local: Address, source: Address, error: ZtunError) -> None:
        self._plane.connections.refused("outbound", join_host_port(*source), join_host_port(*local), error)
        client.abort(ErrorCode.CONNECT_ERROR)

    # -- deciding --------------------------------------------------------------------------------------------

    def _choose(self, arrival: Arrival, protocol: str, server_name: str) -> Destination:
        """The destination, drawn by weight. Raises :class:`RouteError` when the connection is refused."""
        ip, port = arrival.place.declared(arrival.local[0])
        asking = Connection(ip, port, arrival.source[0], protocol=protocol, server_name=server_name)
        return destination_of(self._routers.decide(asking, arrival.view.hop, self._plane.rng))

    def _admit(
        self, client: AppSocket, arrival: Arrival, destination: Destination, peer: PeerIdentity | None
    ) -> tuple[Admitted, Way]:
        """Ask policy, then take a place at an endpoint.

        Raises :class:`PolicyDenied`, :class:`CertificateRevoked` or :class:`RouteError`.
        """
        workload, source = arrival.view.workload, arrival.source
        admitted = Admitted(
            client,
            workload,
            source,
            *arrival.local,
            arrival.started,
            attempt=Attempt(source[0], peer.identity if peer is not None else None, *arrival.local),
            peer=peer,
        )
        self._judge(admitted)
        asker = Asker(source[0], workload.locality, workload.labels)
        lease = self._destinations.take(destination, asker)
        return admitted, Way(lease.route, lease.another, lease)

    def _judge(self, departure: Departure) -> None:
        assert isinstance(departure, Admitted)
        admit(self._plane.snapshot, departure.source, departure.attempt)
        peer = departure.peer
        if peer is not None and self._plane.store.bundle.is_revoked(peer.chain):
            raise CertificateRevoked(
                "peer_revoked", "the client's certificate was revoked", peer=departure.source_text
            )

    def _live(self, departure: Departure, route: OutboundRoute, lease: Lease | None) -> LiveConnection:
        assert isinstance(departure, Admitted)
        gateway = departure.source
        connection = super()._live(departure, route, lease)
        connection.attempt = departure.attempt
        connection.client = departure.peer
        connection.policies = lambda snapshot: policies_of(snapshot, gateway)
        return connection

    # -- TLS -------------------------------------------------------------------------------------------------

    async def _terminate(
        self, client: AppSocket, terminator: Terminator
    ) -> tuple[TlsSocket, PeerIdentity | None]:
        """The client's end without its TLS, and who it is in the mesh. Raises :class:`ZtunError`."""
        plane = self._plane
        session = await terminator.session()
        inner = TlsSocket.over(client, plane.poller, session)
        try:
            await inner.handshake(plane.settings.tunnel_timeouts.tls_handshake)
        except TunnelTlsError as error:
            plane.metrics.handshake_failures.inc("server", error.code)
            inner.abort(ErrorCode.NO_ERROR)  # a reset could overtake the alert that tells the client why
            raise
        try:
            return inner, terminator.client(session)
        except TunnelTlsError as error:
            plane.metrics.handshake_failures.inc("server", error.code)
            inner.abort(ErrorCode.CONNECT_ERROR)
            raise


def _terminator(arrival: Arrival, server_name: str) -> Terminator | None:
    """What ends the TLS of a connection; None where it is passed through."""
    bound = arrival.place.opened.servers.best(server_name)
    if bound is None or bound.treatment is not TlsTreatment.TERMINATE:
        return None
    found = arrival.view.terminators.get(server_key(bound))
    if found is None:
        raise TunnelTlsError(
            "tls_no_certificate",
            f"{bound.config.label} servers[{bound.server.index}] has no certificate that can be used",
            hint="the gateway's log says why (GW-TLS-CREDENTIAL)",
        )
    return found
