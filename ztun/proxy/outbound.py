"""A connection from a local pod: where it goes, through which tunnel, and one retry elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ztun.errors import CaptureError, CertificateRevoked, PolicyDenied, RelayError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.lookup import OutboundRoute, decide_outbound
from ztun.mesh.model import join_host_port
from ztun.net.relay import Relay
from ztun.proxy.connections import LiveConnection
from ztun.proxy.connector import Connector, Reached, worth_another
from ztun.telemetry.labels import TrafficLabels

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.bundle import TrustBundle
    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.app_socket import AppSocket
    from ztun.net.tunnel import Tunnel
    from ztun.proxy.destinations import Lease
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site


@dataclass(frozen=True, slots=True)
class Departure:
    """A connection on its way out: its client's end, the local workload it belongs to, where it wants to go.

    ``answered`` is called once before bytes flow, with None when the destination took the connection and with the
    reason when it did not; the client is closed in that case.
    """

    client: AppSocket
    source: Workload
    source_address: tuple[str, int]
    host: str
    port: int
    started: float
    answered: Callable[[ZtunError | None], None] | None = None

    @property
    def source_text(self) -> str:
        """``ip:port`` of the client."""
        return join_host_port(*self.source_address)

    @property
    def original(self) -> str:
        """``host:port`` that it dialled."""
        return join_host_port(self.host, self.port)

    def turn_away(self, error: ZtunError) -> None:
        """Close the client: with an answer where it waits for one, else with RST."""
        if self.answered is not None:
            self.answered(error)
            self.client.abort(ErrorCode.NO_ERROR)
        else:
            self.client.abort(ErrorCode.CONNECT_ERROR)


class Way(NamedTuple):
    """What was decided: the first route, another one for the second attempt, and the place that is taken there."""

    route: OutboundRoute
    another: Callable[[frozenset[str]], OutboundRoute]
    lease: Lease | None = None


@dataclass(slots=True)
class Journey:
    """A connection between its decision and its relay."""

    departure: Departure
    way: Way
    connection: LiveConnection
    judged: tuple[Snapshot, TrustBundle]
    """By whose policies and revocations it may go."""


class Outbound:
    """Serves the connections of local pods, however they were captured."""

    def __init__(self, plane: Plane, site: Site | None = None) -> None:
        self._plane = plane
        self._site = site or plane.home
        self._connector = Connector(plane, site)

    def take(
        self, client: AppSocket, source: Workload, source_address: tuple[str, int], host: str, port: int
    ) -> None:
        """Carry one connection as ``serve`` does; while a tunnel has room without a task."""
        departure = Departure(client, source, source_address, host, port, self._plane.loop.time())
        try:
            way = self._decide(departure)
        except ZtunError as error:
            # in the next turn: a client that is just connecting shall see that it was connected
            self._plane.loop.call_soon(self._refuse, departure, error)
            return
        journey = self._set_out(departure, way)

        def done(tunnel: Tunnel, stream: TunnelStream | None, failure: ZtunError | None) -> None:
            self._site.ended()
            if stream is not None:
                reached = Reached(way.route, stream, tunnel.peer)
                self._site.attempt(lambda: self._arrive(journey, reached))
            else:
                assert failure is not None
                self._missed(journey, failure)

        self._site.began()
        if not self._connector.request(source, source_address, way.route, done):
            self._site.ended()
            self._site.spawn(self._travel(journey))

    def _missed(self, journey: Journey, failure: ZtunError) -> None:
        """The tunnel that was there did not take the connection."""
        if self._site.closed:
            self._fail(journey, RelayError("shutdown", "the proxy shuts down"))
        else:
            self._site.spawn(self._travel(journey, failure))

    async def serve(
        self,
        client: AppSocket,
        source: Workload,
        source_address: tuple[str, int],
        host: str,
        port: int,
        *,
        answered: Callable[[ZtunError | None], None] | None = None,
    ) -> None:
        """Carry one connection to ``host`` (IP address or name) and ``port``; see :class:`Departure`."""
        started = self._plane.loop.time()
        departure = Departure(client, source, source_address, host, port, started, answered)
        try:
            way = self._decide(departure)
        except ZtunError as error:
            self._refuse(departure, error)
            return
        await self._carry(departure, way)

    def _decide(self, departure: Departure) -> Way:
        """The way through the mesh. Raises :class:`RouteError` or :class:`CaptureError`."""
        plane = self._plane
        self._site.check_room()

        def route(excluded: frozenset[str]) -> OutboundRoute:
            return decide_outbound(
                plane.snapshot,
                departure.source,
                departure.host,
                departure.port,
                rng=plane.rng,
                network=plane.settings.network,
                source_ip=departure.source_address[0],
                excluded=excluded,
            )

        return Way(route(frozenset()), route)

    def _refuse(self, departure: Departure, error: ZtunError) -> None:
        """The end of a connection that never came to a decision."""
        self._plane.connections.refused("outbound", departure.source_text, departure.original, error)
        departure.turn_away(error)

    async def _carry(self, departure: Departure, way: Way) -> None:
        """Reach the next hop and join the two ends."""
        await self._travel(self._set_out(departure, way))

    def _set_out(self, departure: Departure, way: Way) -> Journey:
        """From here on the connection counts."""
        connection = self._live(departure, way.route, way.lease)
        self._plane.connections.opened(connection)
        return Journey(departure, way, connection, (self._plane.snapshot, self._plane.store.bundle))

    async def _travel(self, journey: Journey, failed: ZtunError | None = None) -> None:
        """Reach the next hop; ``failed`` is how the first attempt to do so ended, if it was made."""
        departure, way = journey.departure, journey.way
        try:
            reached = await self._connector.reach(
                departure.source,
                departure.source_address,
                way.route,
                way.another,
                way.lease.limits if way.lease is not None else None,
                failed,
            )
        except ZtunError as error:
            if way.lease is not None and worth_another(error):
                way.lease.failed()
            self._fail(journey, error)
            return
        except asyncio.CancelledError:
            self._fail(journey, RelayError("shutdown", "the proxy shuts down"))
            raise
        self._arrive(journey, reached)

    def _arrive(self, journey: Journey, reached: Reached) -> None:
        """Join the two ends."""
        plane, departure, connection = self._plane, journey.departure, journey.connection
        snapshot, bundle = journey.judged
        if plane.snapshot is not snapshot or plane.store.bundle is not bundle:
            # a change judges established connections only; this one was between the two
            try:
                self._judge(departure)
            except (PolicyDenied, CertificateRevoked) as error:
                reached.server.abort(ErrorCode.CANCEL)
                self._fail(journey, error)
                return
        lease = journey.way.lease
        if lease is not None:
            lease.opened()
        route = reached.route
        connection.peer = reached.peer
        if reached.failure is not None:
            plane.connections.rerouted(connection, _labels(departure.source, route), reached.failure)
        if route is not journey.way.route:
            connection.actual_destination = join_host_port(*route.address)
            connection.hbone_addr = route.authority or ""
        if departure.answered is not None:
            departure.answered(None)
        connection.relay = Relay(departure.client, reached.server, lambda error: self._finish(journey, error))
        connection.relay.start()

    def _fail(self, journey: Journey, error: ZtunError) -> None:
        """The end of a connection that was not joined."""
        self._finish(journey, error)
        journey.departure.turn_away(error)

    def _finish(self, journey: Journey, error: ZtunError | None) -> None:
        if journey.way.lease is not None:
            journey.way.lease.close()
        self._plane.connections.finished(journey.connection, error)

    def _live(self, departure: Departure, route: OutboundRoute, lease: Lease | None) -> LiveConnection:
        """The connection as it is reported and watched."""
        connection = LiveConnection(
            direction="outbound",
            local=departure.source,
            source_addr=departure.source_text,
            original_destination=departure.original,
            actual_destination=join_host_port(*route.address),
            hbone_addr=route.authority or "",
            started=departure.started,
            labels=_labels(departure.source, route),
            site=self._site,
        )
        if lease is not None:
            connection.idle_timeout = lease.limits.idle_timeout or 0.0
            if lease.limits.max_connection_duration is not None:
                connection.ends_at = departure.started + lease.limits.max_connection_duration
        return connection

    def _judge(self, departure: Departure) -> None:
        """Raise :class:`PolicyDenied` or :class:`CertificateRevoked`; nothing is enforced on the way out of a pod."""


def _labels(source: Workload, route: OutboundRoute) -> TrafficLabels:
    tunnelled = route.authority is not None
    return TrafficLabels(
        "source",
        source,
        route.destination,
        route.service,
        source.identity if tunnelled else None,
        route.destination.identity if tunnelled and route.destination is not None else None,
        tunnelled,
    )


async def wait_for_workload(plane: Plane, find: Callable[[], Workload | None], what: str) -> Workload:
    """The local workload of a new connection; waits a while for one that the mesh does not know yet."""
    found = find()
    if found is None:
        limit = plane.settings.timeouts.source_workload
        try:
            async with asyncio.timeout(limit):
                while found is None:
                    await plane.snapshot_changed()
                    found = find()
        except TimeoutError:
            raise CaptureError(
                "unknown_source",
                f"{what} is not a local workload of the mesh (waited {limit:g} s)",
                hint="is the pod among the documents, on this node, and labelled for the mesh?",
            ) from None
    return found
