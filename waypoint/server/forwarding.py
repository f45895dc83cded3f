"""One connection at a waypoint: what it asks for, who may, where it goes, and one retry elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from waypoint.server.policies import policies_for
from waypoint.server.target import Target, find_target, not_served
from ztun.errors import PolicyDenied, RouteError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.address import parse_host_port
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.gateway import is_waypoint_of
from ztun.mesh.lookup import OutboundRoute, RouteKind, route_to_workload
from ztun.mesh.model import AppTunnelProtocol, Vip, Workload, join_host_port
from ztun.proxy.connections import LiveConnection
from ztun.proxy.connector import Connector, worth_another
from ztun.proxy.destinations import Destinations, destination_of
from ztun.proxy.outbound import Way
from ztun.routing import Action, Connection, Hop, HopKind
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.logging import get_logger
from ztun.traffic.cluster import Asker

if TYPE_CHECKING:
    from certs.peer import PeerIdentity
    from certs.spiffe import SpiffeId
    from waypoint.server.instance import WaypointName
    from ztun.hbone.stream import TunnelStream
    from ztun.net.app_socket import AppSocket
    from ztun.proxy.plane import Plane
    from ztun.proxy.routers import CompiledRouter


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection that has reached the waypoint ``local``. Addresses are (ip, port), times the loop's.

    ``authority`` is what it asks for. ``identity`` is None when nobody vouches for the client.
    """

    local: Workload
    local_address: tuple[str, int]
    client: tuple[str, int]
    identity: SpiffeId | None
    authority: str
    started: float
    peer: PeerIdentity | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection that was decided on, and the way it takes."""

    connection: LiveConnection
    arrival: Arrival
    way: Way


class Forwarding:
    """Decides on connections with the newest router and makes their server ends."""

    def __init__(self, plane: Plane, waypoint: WaypointName, routers: CompiledRouter) -> None:
        self._plane = plane
        self._waypoint = waypoint
        self._routers = routers
        self._connector = Connector(plane)
        self._destinations = Destinations(
            plane.loop.time, plane.rng, network=plane.settings.network, metrics=plane.metrics
        )
        self._log = get_logger("waypoint")

    def admit(self, arrival: Arrival) -> Admitted:
        """Resolve and decide. Raises :class:`InboundRefused` or :class:`RouteError`."""
        target = find_target(
            # the snapshot of the router, so that what is found here is known there
            self._routers.snapshot,
            arrival.local,
            arrival.authority,
            network=self._plane.settings.network,
            client_namespace=arrival.identity.namespace if arrival.identity is not None else "",
        )
        if target.workload is not None:
            way = self._direct(arrival, target, target.workload)
        else:
            target, way = self._routed(arrival, target)
        if _is_sandwiched(arrival.local):
            way = _plain_way(way)
        return Admitted(self._live(arrival, target, way), arrival, way)

    async def reach(self, admitted: Admitted) -> AppSocket | TunnelStream:
        """Ask authorization, then make the server end. Raises :class:`ZtunError` of the stage that failed."""
        plane, connection, arrival, way = self._plane, admitted.connection, admitted.arrival, admitted.way
        judged = plane.snapshot
        self._authorize(connection)
        lease = way.lease
        try:
            reached = await self._connector.reach(
                arrival.local, arrival.client, way.route, way.another, lease.limits if lease else None
            )
        except ZtunError as error:
            if lease is not None and worth_another(error):
                lease.failed()
            raise
        if lease is not None:
            lease.opened()
        if plane.snapshot is not judged:
            # a reload judges established connections only; this one was between the two
            try:
                self._authorize(connection)
            except PolicyDenied:
                reached.server.abort(ErrorCode.CANCEL)
                raise
        if reached.failure is not None:
            labels = _towards(connection.labels, reached.route)
            plane.connections.rerouted(connection, labels, reached.failure)
        connection.actual_destination = join_host_port(*reached.route.address)
        connection.application = reached.route.authority or connection.actual_destination
        return reached.server

    # -- inside ----------------------------------------------------------------------------------------------

    def _routed(self, arrival: Arrival, target: Target) -> tuple[Target, Way]:
        """Ask the engine. It may know another owner of a shared address, which this waypoint must serve too."""
        local, identity = arrival.local, arrival.identity
        decision = self._routers.decide(
            Connection(
                destination_ip=target.ip,
                destination_port=target.port,
                source_ip=arrival.client[0],
                source_namespace=identity.namespace if identity is not None else "",
                source_identity=identity,
                destination_host=target.host,
            ),
            Hop(
                HopKind.WAYPOINT,
                self._waypoint.namespace,
                self._waypoint.name,
                labels=local.labels,
                locality=local.locality,
            ),
            self._plane.rng,
        )
        if decision.action in (Action.PASSTHROUGH, Action.BLACKHOLE):
            raise not_served(arrival.authority, local)
        service = decision.service or target.service
        assert service is not None
        if not is_waypoint_of(self._routers.snapshot, service, local):
            raise not_served(arrival.authority, local)
        asker = Asker(arrival.client[0], local.locality, local.labels)
        dialled = (target.ip, target.port) if target.ip else None
        lease = self._destinations.take(destination_of(decision), asker, dialled=dialled)
        return replace(target, service=service), Way(lease.route, lease.another, lease)

    def _direct(self, arrival: Arrival, target: Target, workload: Workload) -> Way:
        """Traffic to a workload's own address is not routed: it goes there, if policy allows."""

        def another(excluded: frozenset[str]) -> OutboundRoute:
            raise RouteError("no_healthy_upstream", f"{arrival.authority} was tried and is the only choice")

        return Way(route_to_workload(workload, target.ip, target.port, None), another)

    def _authorize(self, connection: LiveConnection) -> None:
        assert connection.attempt is not None
        assert connection.policies is not None
        verdict = authorize(connection.policies(self._plane.snapshot), connection.attempt)
        for policy in verdict.dry_run:
            self._log.info("dry-run policy matched", policy=policy, peer=connection.source_addr)
        if not verdict.allowed:
            raise PolicyDenied(
                "policy_rejection",
                f"connection closed due to policy rejection: {verdict.reason}",
                hint="an authorization policy of the waypoint or of the service does not allow this source",
                peer=connection.source_addr,
            )

    def _live(self, arrival: Arrival, target: Target, way: Way) -> LiveConnection:
        plane, waypoint, route, lease = self._plane, self._waypoint, way.route, way.lease
        client = plane.snapshot.workload_by_address(plane.settings.network, arrival.client[0])
        if client is not None and client.identity != arrival.identity:
            client = None  # the address has moved; the certificate is what counts
        labels = TrafficLabels(
            "waypoint",
            client,
            None,
            target.service,
            arrival.identity,
            mutual_tls=arrival.identity is not None,
        )
        connection = LiveConnection(
            direction="inbound",
            local=arrival.local,
            source_addr=join_host_port(*arrival.client),
            original_destination=arrival.authority,
            actual_destination=join_host_port(*route.address),
            hbone_addr=arrival.authority if arrival.peer is not None else "",
            application=route.authority or join_host_port(*route.address),
            started=arrival.started,
            attempt=Attempt(
                arrival.client[0],
                arrival.identity,
                # a service that is known by name only has no address that a policy could mean
                target.ip or next((vip.ip for vip in _vips(target)), arrival.local_address[0]),
                target.port,
            ),
            policies=lambda snapshot: policies_for(snapshot, waypoint, target),
            peer=arrival.peer,
            labels=_towards(labels, route),
        )
        if lease is not None:
            connection.on_end = lease.close
            connection.idle_timeout = lease.limits.idle_timeout or 0.0
            if lease.limits.max_connection_duration is not None:
                connection.ends_at = arrival.started + lease.limits.max_connection_duration
        return connection


def _is_sandwiched(local: Workload) -> bool:
    """Whether a node proxy stands between the waypoint and the network, in both directions."""
    tunnel = local.application_tunnel
    return tunnel is not None and tunnel.protocol is AppTunnelProtocol.PROXY


def _plain_way(way: Way) -> Way:
    """The same endpoints without tunnels."""
    return Way(_plainly(way.route), lambda excluded: _plainly(way.another(excluded)), way.lease)


def _plainly(route: OutboundRoute) -> OutboundRoute:
    """The same endpoint without a tunnel: the node proxy in front of the waypoint makes that."""
    if route.kind is not RouteKind.HBONE or route.authority is None:
        return route
    inside = parse_host_port(route.authority)
    address = (inside.host, inside.port)
    return route._replace(kind=RouteKind.TCP, address=address, authority=None, expected=())


def _towards(labels: TrafficLabels, route: OutboundRoute) -> TrafficLabels:
    destination = route.destination
    return labels._replace(
        destination=destination,
        destination_principal=destination.identity if destination and route.authority else None,
    )


def _vips(target: Target) -> tuple[Vip, ...]:
    return target.service.vips if target.service is not None else ()
