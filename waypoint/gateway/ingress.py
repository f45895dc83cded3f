"""A connection from outside: who decides about it, which endpoint takes it, and one retry elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waypoint.gateway.gatekeeper import admit, policies_of
from waypoint.onward import destination_of, onward
from ztun.errors import RelayError, RouteError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.authorization import Attempt
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.relay import Relay
from ztun.proxy.connections import LiveConnection
from ztun.proxy.connector import Connector
from ztun.routing import Connection
from ztun.telemetry.labels import TrafficLabels

if TYPE_CHECKING:
    from waypoint.gateway.places import Address, Place
    from waypoint.gateway.view import View
    from ztun.mesh.lookup import OutboundRoute
    from ztun.mesh.model import Workload
    from ztun.net.listeners import Accept
    from ztun.proxy.plane import Plane
    from ztun.routing import Destination


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection that was accepted, and the state of the gateway at that moment."""

    view: View
    place: Place
    source: Address
    local: Address
    started: float

    @property
    def attempt(self) -> Attempt:
        """The connection as policies see it."""
        return Attempt(self.source[0], None, *self.local)


class Ingress:
    """Serves what the listeners accept. ``view`` is replaced on a reload."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._connector = Connector(plane)
        self.view: View | None = None

    def accept(self, address: Address) -> Accept:
        """What takes the connections of one listening socket."""

        def accept(transport: asyncio.Transport, local: Address, source: Address) -> asyncio.BaseProtocol:
            client = AppSocket(self._plane.buffers)
            self._plane.spawn(self._serve(client, self._arrival(address, local, source), source, local))
            return client

        return accept

    def _arrival(self, address: Address, local: Address, source: Address) -> Arrival | None:
        view = self.view
        place = view.places.get(address) if view is not None else None
        if view is None or place is None:
            return None
        return Arrival(view, place, source, local, self._plane.loop.time())

    async def _serve(
        self, client: AppSocket, arrival: Arrival | None, source: Address, local: Address
    ) -> None:
        plane = self._plane
        try:
            if arrival is None:
                raise RouteError("route_no_listener", "the listener was removed by a change of configuration")
            admit(plane.snapshot, arrival.view.workload.uid, arrival.attempt)
            destination = self._decide(arrival)
            route = onward(destination, plane.settings.network, plane.rng)
        except ZtunError as error:
            plane.connections.refused("outbound", join_host_port(*source), join_host_port(*local), error)
            client.abort(ErrorCode.CONNECT_ERROR)
            return
        await self._forward(client, arrival, destination, route)

    def _decide(self, arrival: Arrival) -> Destination:
        """The destination, drawn by weight. Raises :class:`RouteError` when the connection is refused."""
        view = arrival.view
        ip, port = arrival.place.declared(arrival.local[0])
        asking = Connection(ip, port, arrival.source[0])
        return destination_of(view.router.decide(asking, view.hop, self._plane.rng))

    async def _forward(
        self, client: AppSocket, arrival: Arrival, destination: Destination, route: OutboundRoute
    ) -> None:
        plane, workload = self._plane, arrival.view.workload
        judged = plane.snapshot
        connection = self._live(arrival, route)
        plane.connections.opened(connection)
        try:
            reached = await self._connector.reach(
                workload,
                arrival.source,
                route,
                lambda excluded: onward(destination, plane.settings.network, plane.rng, excluded),
            )
            if plane.snapshot is not judged:
                # a reload judges established connections only; this one was between the two
                try:
                    admit(plane.snapshot, workload.uid, arrival.attempt)
                except ZtunError:
                    reached.server.abort(ErrorCode.CANCEL)
                    raise
        except ZtunError as error:
            plane.connections.finished(connection, error)
            client.abort(ErrorCode.CONNECT_ERROR)
            return
        except asyncio.CancelledError:
            plane.connections.finished(connection, RelayError("shutdown", "the proxy shuts down"))
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        if reached.failure is not None:
            plane.connections.rerouted(connection, _labels(workload, reached.route), reached.failure)
        connection.peer = reached.peer
        connection.actual_destination = join_host_port(*reached.route.address)
        connection.hbone_addr = reached.route.authority or ""
        connection.relay = Relay(
            client, reached.server, lambda error: plane.connections.finished(connection, error)
        )
        connection.relay.start()

    def _live(self, arrival: Arrival, route: OutboundRoute) -> LiveConnection:
        workload = arrival.view.workload
        return LiveConnection(
            direction="outbound",
            local=workload,
            source_addr=join_host_port(*arrival.source),
            original_destination=join_host_port(*arrival.local),
            actual_destination=join_host_port(*route.address),
            hbone_addr=route.authority or "",
            started=arrival.started,
            attempt=arrival.attempt,
            policies=lambda snapshot: policies_of(snapshot, workload.uid),
            labels=_labels(workload, route),
        )


def _labels(workload: Workload, route: OutboundRoute) -> TrafficLabels:
    tunnelled = route.authority is not None
    return TrafficLabels(
        "source",
        workload,
        route.destination,
        route.service,
        workload.identity if tunnelled else None,
        route.destination.identity if tunnelled and route.destination is not None else None,
        tunnelled,
    )
