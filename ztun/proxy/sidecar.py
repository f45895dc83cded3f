"""Sidecar mode: the routing engine decides where the connections of the one workload go.

1. The dialled address or name is looked up as in ambient mode; what the engine needs to know of the client is added.
2. Where rules depend on the server name of a TLS client, its first bytes are looked at, for a limited time.
3. The engine draws a destination; its traffic policy chooses the endpoint, sets limits and counts.
4. An address that no service owns goes to the workload that has it, else to where it was going.

Waypoints are passed by: the rules were evaluated here.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from ztun.errors import RelayError, RouteError, ZtunError
from ztun.mesh.lookup import OutboundRoute, RouteKind, find_destination, route_to_workload
from ztun.net.peek import peek_client_hello
from ztun.proxy.destinations import Destinations, destination_of
from ztun.proxy.outbound import Departure, Outbound, Way
from ztun.routing import Action, Connection, Hop, HopKind
from ztun.telemetry.logging import get_logger
from ztun.traffic.cluster import Asker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.proxy.plane import Plane
    from ztun.proxy.routers import CompiledRouter
    from ztun.routing import Decision


class SidecarOutbound(Outbound):
    """Serves the outbound connections of one workload by the rules of an engine."""

    def __init__(self, plane: Plane, routers: CompiledRouter) -> None:
        super().__init__(plane)
        self._routers = routers
        self._destinations = Destinations(
            plane.loop.time, plane.rng, network=plane.settings.network, metrics=plane.metrics
        )
        self._log = get_logger("routing")

    def take(
        self, client: AppSocket, source: Workload, source_address: tuple[str, int], host: str, port: int
    ) -> None:
        """Carry one connection, in a task: the server name may have to be waited for."""
        self._site.spawn(self.serve(client, source, source_address, host, port))

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
            asking, hop = self._asking(departure), self._hop(source)
            if self._routers.wants_server_name(asking, hop):
                if answered is not None:
                    # the client says nothing before it has an answer
                    answered(None)
                    departure = replace(departure, answered=None)
                asking = await self._with_server_name(client, asking)
            way = self._follow(departure, asking, self._routers.decide(asking, hop, self._plane.rng))
        except ZtunError as error:
            self._refuse(departure, error)
            return
        except asyncio.CancelledError:
            self._refuse(departure, RelayError("shutdown", "the proxy shuts down"))
            raise
        await self._carry(departure, way)

    # -- asking ----------------------------------------------------------------------------------------------

    def _asking(self, departure: Departure) -> Connection:
        """The connection as an engine sees it. Raises :class:`RouteError`."""
        source, network = departure.source, self._plane.settings.network
        ip, service, _ = find_destination(
            self._routers.snapshot, source, departure.host, departure.port, network
        )
        name = ""
        if ip is None and service is not None:
            # a name stands for the address that DNS has for it
            ip = next((vip.ip for vip in service.vips if vip.network == network and vip.cidr is None), "")
            name = "" if ip else service.hostname
        return Connection(
            destination_ip=ip or "",
            destination_port=departure.port,
            source_ip=departure.source_address[0],
            source_namespace=source.namespace,
            source_labels=source.labels,
            source_identity=source.identity,
            destination_host=name,
        )

    def _hop(self, source: Workload) -> Hop:
        return Hop(
            HopKind.CLIENT,
            source.namespace,
            source.name,
            source.labels,
            source.locality,
            self._plane.settings.registry_only,
        )

    async def _with_server_name(self, client: AppSocket, asking: Connection) -> Connection:
        hello = await peek_client_hello(client, self._plane.settings.timeouts.client_hello)
        if hello is None:
            return asking
        return replace(asking, protocol="tls", server_name=hello.server_name)

    # -- following the answer --------------------------------------------------------------------------------

    def _follow(self, departure: Departure, asking: Connection, decision: Decision) -> Way:
        """What to do about a decision. Raises :class:`RouteError` where the connection is to be closed."""
        if decision.action is Action.PASSTHROUGH:
            return self._pass_on(asking)
        if decision.action is Action.BLACKHOLE:
            raise RouteError(
                "route_blackhole",
                f"{departure.original} is not in the registry",
                hint="add a ServiceEntry, or allow other addresses (ZTUN_OUTBOUND_TRAFFIC_POLICY)",
            )
        destination = destination_of(decision)
        source = departure.source
        asker = Asker(asking.source_ip, source.locality, source.labels)
        dialled = (asking.destination_ip, asking.destination_port) if asking.destination_ip else None
        lease = self._destinations.take(destination, asker, dialled=dialled)
        self._log.debug("routed", to=f"{destination.host}:{destination.port}", by=decision.matched)

        return Way(lease.route, lease.another, lease)

    def _pass_on(self, asking: Connection) -> Way:
        """To the workload that has the address, else to where the connection was going."""
        address = (asking.destination_ip, asking.destination_port)
        if not asking.destination_ip:
            raise RouteError("route_no_address", f"{asking.destination_host} has no address to go to")
        found = self._routers.snapshot.workload_by_address(
            self._plane.settings.network, asking.destination_ip
        )
        if found is not None:
            route = route_to_workload(found, *address, None)
        else:
            route = OutboundRoute(RouteKind.PASSTHROUGH, address)

        def another(excluded: frozenset[str]) -> OutboundRoute:
            raise RouteError(
                "no_healthy_upstream", f"{asking.destination_ip} was tried and is the only choice"
            )

        return Way(route, another)
