"""The destinations that routing decisions lead to: which endpoint takes a connection, under the destination's policy.

What is known of a destination (open connections, turns, ejected endpoints) belongs to the process: it is kept over
reloads, and shared by all rules that lead there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ztun.errors import RouteError
from ztun.mesh.lookup import OutboundRoute, RouteKind, route_to_workload
from ztun.mesh.model import TunnelProtocol, join_host_port
from ztun.routing import Action, Decision, Destination, RouteEndpoint
from ztun.telemetry.families import Counter
from ztun.telemetry.logging import get_logger
from ztun.telemetry.metrics import Metrics
from ztun.traffic.balancers import EndpointKey
from ztun.traffic.cluster import Asker, Cluster, Member
from ztun.traffic.policy import Balancing, PoolLimits, TlsMode

MAX_IDLE_DESTINATIONS = 4096  # those with open connections are bounded by the connections

_Key: TypeAlias = tuple[str, str, int, str]


def destination_of(decision: Decision) -> Destination:
    """The destination that a decision sends the connection to. Raises :class:`RouteError` when it is refused."""
    chosen = decision.chosen
    if not decision.refused and chosen is not None:
        return chosen
    codes = " ".join(dict.fromkeys(one.code for one in decision.diagnostics))
    hint = f"waypoint explain tells why{f'; findings: {codes}' if codes else ''}"
    if chosen is not None:
        subset = f" subset {chosen.subset}" if chosen.subset else ""
        rule = f"{decision.matched} sends it" if decision.matched is not None else "it goes"
        raise RouteError(
            f"route_{chosen.status.value}",
            f"{rule} to {chosen.host}:{chosen.port}{subset}, which is not usable ({chosen.status.value})",
            hint=hint,
        )
    if decision.action is Action.HTTP_LAYER:
        raise RouteError("route_http", "the port is for HTTP, which is not routed here", hint=hint)
    raise RouteError(f"route_{decision.action.value}", "no rule takes the connection", hint=hint)


class Destinations:
    """All destinations of a process. ``clock`` gives seconds and never goes back."""

    def __init__(
        self,
        clock: Callable[[], float],
        rng: random.Random,
        *,
        network: str = "",
        metrics: Metrics | None = None,
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._network = network
        self._states: dict[_Key, _State] = {}
        self._idle_allowed = MAX_IDLE_DESTINATIONS
        self._ejected = Counter(
            "ztun_endpoints_ejected", "Endpoints left alone for a while after failed connects (unstable)"
        )
        self._overflowed = Counter(
            "ztun_destination_overflows", "Connections closed because of maxConnections (unstable)"
        )
        self._log = get_logger("routing")
        if metrics is not None:
            metrics.add(self._ejected)
            metrics.add(self._overflowed)

    def __len__(self) -> int:
        return len(self._states)

    def take(self, destination: Destination, asker: Asker, *, dialled: EndpointKey | None = None) -> Lease:
        """An endpoint for one connection; the caller reports what becomes of it.

        ``dialled`` is the address that the client dialled, which balancing of mode PASSTHROUGH keeps.
        Raises :class:`RouteError`: ``overload``, ``no_healthy_upstream``, ``tls_no_tunnel``, ``tls_origination``.
        """
        cluster = self._cluster(destination)
        if cluster.full:
            self._overflowed.inc()
            raise RouteError(
                "overload",
                f"{destination.host}:{destination.port} has as many connections as it may have",
                hint="connectionPool.tcp.maxConnections of its DestinationRule sets the limit",
            )

        def choose(excluded: frozenset[str]) -> tuple[EndpointKey, OutboundRoute]:
            return self._choose(destination, cluster, asker, dialled, excluded)

        return Lease(cluster, choose, self._blame, destination.policy.pool)

    # -- inside ----------------------------------------------------------------------------------------------

    def _blame(self, cluster: Cluster, key: EndpointKey) -> None:
        if cluster.failed(key, self._clock()):
            self._ejected.inc()
            self._log.warning("endpoint ejected after failed connects", endpoint=join_host_port(*key))

    def _choose(
        self,
        destination: Destination,
        cluster: Cluster,
        asker: Asker,
        dialled: EndpointKey | None,
        excluded: frozenset[str],
    ) -> tuple[EndpointKey, OutboundRoute]:
        if dialled is not None and destination.policy.balancing is Balancing.PASSTHROUGH:
            if excluded:
                raise _none_left(destination)
            owner = next((one for one in destination.endpoints if one.ip == dialled[0]), None)
            if owner is None:
                return dialled, OutboundRoute(RouteKind.PASSTHROUGH, dialled, service=destination.service)
            return dialled, _way(destination, RouteEndpoint(owner.workload, *dialled))
        tried = frozenset(
            (one.ip, one.port) for one in destination.endpoints if excluded and one.workload.uid in excluded
        )
        member = cluster.pick(asker, self._clock(), self._rng, excluded=tried)
        if member is None:
            raise _none_left(destination)
        return member.key, _way(destination, RouteEndpoint(member.workload, *member.key))

    def _cluster(self, destination: Destination) -> Cluster:
        service, endpoints = destination.service, destination.endpoints
        # a connection to one pod of a headless service is about that pod only
        alone = service is not None and service.headless and len(endpoints) == 1
        key = (destination.host, destination.subset, destination.port, endpoints[0].ip if alone else "")
        state = self._states.pop(key, None)
        if state is None:
            cluster = Cluster(destination.policy, self._members(destination), self._clock())
            state = _State(destination, cluster)
            self._forget_idle()
        elif state.destination is not destination:
            before = state.destination
            if before.policy != destination.policy or before.endpoints != destination.endpoints:
                state.cluster.update(destination.policy, self._members(destination), self._clock())
            state.destination = destination
        self._states[key] = state
        return state.cluster

    def _members(self, destination: Destination) -> list[Member]:
        return [
            Member((one.ip, one.port), one.workload)
            for one in destination.endpoints
            if one.workload.network == self._network
        ]

    def _forget_idle(self) -> None:
        """The one that was not used for the longest time goes; those with connections stay."""
        if len(self._states) >= self._idle_allowed:
            idle = next((key for key, state in self._states.items() if not state.cluster.active), None)
            if idle is not None:
                del self._states[idle]


@dataclass(slots=True)
class _State:
    destination: Destination
    cluster: Cluster


class Lease:
    """A place at a destination, for one connection: from the choice of an endpoint until ``close``."""

    __slots__ = ("_blame", "_choose", "_cluster", "_key", "_open", "limits", "route")

    def __init__(
        self,
        cluster: Cluster,
        choose: Callable[[frozenset[str]], tuple[EndpointKey, OutboundRoute]],
        blame: Callable[[Cluster, EndpointKey], None],
        limits: PoolLimits,
    ) -> None:
        self._cluster = cluster
        self._choose = choose
        self._blame = blame
        self._key, self.route = choose(frozenset())
        self._open = True
        self.limits = limits
        cluster.taken(self._key)

    def another(self, excluded: frozenset[str]) -> OutboundRoute:
        """The endpoint could not be reached: the way to another one, none of the workloads ``excluded`` by uid.

        Raises :class:`RouteError` when there is none.
        """
        key, route = self._choose(excluded)
        self.failed()
        self._key, self.route, self._open = key, route, True
        self._cluster.taken(key)
        return route

    def opened(self) -> None:
        """The connection was made."""
        self._cluster.opened(self._key)

    def failed(self) -> None:
        """It was not made, and the endpoint is to blame."""
        if self._open:
            self.close()
            self._blame(self._cluster, self._key)

    def close(self) -> None:
        """It has ended, or was given up."""
        if self._open:
            self._open = False
            self._cluster.closed(self._key)


def _way(destination: Destination, endpoint: RouteEndpoint) -> OutboundRoute:
    """To an endpoint as ``tls.mode`` says; what cannot be encrypted as demanded is refused, never sent plainly."""
    mode, workload = destination.policy.tls.mode, endpoint.workload
    address = (endpoint.ip, endpoint.port)
    if mode is TlsMode.DISABLE:
        return OutboundRoute(RouteKind.TCP, address, destination=workload, service=destination.service)
    if mode in (TlsMode.SIMPLE, TlsMode.MUTUAL):
        raise RouteError(
            "tls_origination",
            f"{destination.host} wants TLS of mode {mode.value}, which this proxy does not originate",
            hint="let the application speak TLS and set tls.mode DISABLE for this destination",
        )
    if mode is TlsMode.ISTIO_MUTUAL and workload.tunnel_protocol is TunnelProtocol.NONE:
        raise RouteError(
            "tls_no_tunnel",
            f"{destination.host} wants ISTIO_MUTUAL, and {workload.namespace}/{workload.name} is not in the mesh",
            hint="bring the pod into the mesh, or set tls.mode DISABLE",
        )
    return route_to_workload(workload, *address, destination.service)


def _none_left(destination: Destination) -> RouteError:
    return RouteError(
        "no_healthy_upstream",
        f"{destination.host}:{destination.port} has no endpoint that can be reached",
        hint="check the readiness, the capacity and the network of its pods, and whether they were ejected",
    )
