"""From a decision to the next hop: one endpoint of the destination that was drawn, or why there is none."""

from __future__ import annotations

import random
from itertools import accumulate

from ztun.errors import RouteError
from ztun.mesh.lookup import OutboundRoute, route_to_workload
from ztun.routing import Action, Decision, Destination, RouteEndpoint


def destination_of(decision: Decision) -> Destination:
    """The destination that a decision sends the connection to. Raises :class:`RouteError` when it is refused."""
    chosen = decision.chosen
    if not decision.refused and chosen is not None:
        return chosen
    codes = " ".join(dict.fromkeys(one.code for one in decision.diagnostics))
    hint = f"waypoint explain tells why{f'; findings: {codes}' if codes else ''}"
    if chosen is not None:
        subset = f" subset {chosen.subset}" if chosen.subset else ""
        raise RouteError(
            f"route_{chosen.status.value}",
            f"{decision.matched} sends it to {chosen.host}:{chosen.port}{subset}, which is not usable "
            f"({chosen.status.value})",
            hint=hint,
        )
    if decision.action is Action.HTTP_LAYER:
        raise RouteError("route_http", "the port is for HTTP, which is not routed here", hint=hint)
    raise RouteError(f"route_{decision.action.value}", "no rule takes the connection", hint=hint)


def onward(
    destination: Destination, network: str, rng: random.Random, excluded: frozenset[str] = frozenset()
) -> OutboundRoute:
    """The way to one endpoint, drawn by capacity; ``excluded`` are uids not to choose again.

    Raises :class:`RouteError` ``no_healthy_upstream``.
    """
    endpoints = [
        one
        for one in destination.endpoints
        if one.workload.uid not in excluded and one.workload.capacity > 0 and one.workload.network == network
    ]
    if not endpoints:
        raise RouteError(
            "no_healthy_upstream",
            f"{destination.host}:{destination.port} has no endpoint that can be reached",
            hint="check the readiness, the capacity and the network of its pods",
        )
    drawn = _drawn(endpoints, rng)
    return route_to_workload(drawn.workload, drawn.ip, drawn.port, destination.service)


def _drawn(endpoints: list[RouteEndpoint], rng: random.Random) -> RouteEndpoint:
    if len(endpoints) == 1:
        return endpoints[0]
    weights = list(accumulate(one.workload.capacity for one in endpoints))
    return rng.choices(endpoints, cum_weights=weights)[0]
