"""A connection from a local pod: where it goes, through which tunnel, and one retry elsewhere."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztun.errors import CaptureError, RelayError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.lookup import OutboundRoute, decide_outbound
from ztun.mesh.model import join_host_port
from ztun.net.relay import Relay
from ztun.proxy.connections import LiveConnection
from ztun.proxy.connector import Connector
from ztun.telemetry.labels import TrafficLabels

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.proxy.plane import Plane


class Outbound:
    """Serves the connections of local pods, however they were captured."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._connector = Connector(plane)

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
        """Carry one connection to ``host`` (IP address or name) and ``port``.

        ``answered`` is called once before bytes flow, with None when the destination took the connection and with
        the reason when it did not; the client is closed in that case.
        """
        plane = self._plane
        started = plane.loop.time()
        source_text = join_host_port(*source_address)
        original = join_host_port(host, port)
        try:
            route = self._decide(source, source_address[0], host, port, frozenset())
        except ZtunError as error:
            plane.connections.refused("outbound", source_text, original, error)
            _turn_away(client, answered, error)
            return
        connection = self._live(source, source_text, original, route, started)
        plane.connections.opened(connection)
        try:
            route, server = await self._establish(connection, source_address, host, port, route)
        except ZtunError as error:
            plane.connections.finished(connection, error)
            _turn_away(client, answered, error)
            return
        except asyncio.CancelledError:
            shutdown = RelayError("shutdown", "the proxy shuts down")
            plane.connections.finished(connection, shutdown)
            _turn_away(client, answered, shutdown)
            raise
        connection.actual_destination = join_host_port(*route.address)
        connection.hbone_addr = route.authority or ""
        if answered is not None:
            answered(None)
        connection.relay = Relay(client, server, lambda error: plane.connections.finished(connection, error))
        connection.relay.start()

    def _decide(
        self, source: Workload, source_ip: str, host: str, port: int, excluded: frozenset[str]
    ) -> OutboundRoute:
        plane = self._plane
        return decide_outbound(
            plane.snapshot,
            source,
            host,
            port,
            rng=plane.rng,
            network=plane.settings.network,
            source_ip=source_ip,
            excluded=excluded,
        )

    async def _establish(
        self,
        connection: LiveConnection,
        source_address: tuple[str, int],
        host: str,
        port: int,
        route: OutboundRoute,
    ) -> tuple[OutboundRoute, AppSocket | TunnelStream]:
        """Reach the next hop, or on failure another endpoint once. Raises the first failure if both fail."""
        source = connection.local
        reached = await self._connector.reach(
            source,
            source_address,
            route,
            lambda excluded: self._decide(source, source_address[0], host, port, excluded),
        )
        connection.peer = reached.peer
        if reached.failure is not None:
            self._plane.connections.rerouted(connection, _labels(source, reached.route), reached.failure)
        return reached.route, reached.server

    def _live(
        self, source: Workload, source_text: str, original: str, route: OutboundRoute, started: float
    ) -> LiveConnection:
        return LiveConnection(
            direction="outbound",
            local=source,
            source_addr=source_text,
            original_destination=original,
            actual_destination=join_host_port(*route.address),
            hbone_addr=route.authority or "",
            started=started,
            labels=_labels(source, route),
        )


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


def _turn_away(
    client: AppSocket, answered: Callable[[ZtunError | None], None] | None, error: ZtunError
) -> None:
    if answered is not None:
        answered(error)
        client.abort(ErrorCode.NO_ERROR)
    else:
        client.abort(ErrorCode.CONNECT_ERROR)


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
