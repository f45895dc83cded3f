"""Choice of an endpoint of a service: eligibility, locality preference, weighted draw.

Source: ztunnel's load balancing; modes and scopes are those of ``istio.workload.LoadBalancing``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ztun.mesh.model import BalanceMode, Scope, Service, Workload
from ztun.mesh.snapshot import Endpoint, Snapshot

_SCOPES: Mapping[Scope, Callable[[Workload], str]] = {
    Scope.REGION: lambda workload: workload.locality.region,
    Scope.ZONE: lambda workload: workload.locality.zone,
    Scope.SUBZONE: lambda workload: workload.locality.subzone,
    Scope.NODE: lambda workload: workload.node,
    Scope.CLUSTER: lambda workload: workload.cluster_id,
    Scope.NETWORK: lambda workload: workload.network,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The endpoint that was drawn and the port it listens on."""

    workload: Workload
    port: int


def choose_endpoint(
    snapshot: Snapshot,
    service: Service,
    port: int,
    source: Workload | None,
    *,
    rng: random.Random,
    excluded: frozenset[str] = frozenset(),
    for_waypoint: bool = False,
) -> Choice | None:
    """Draw an endpoint for a port of the service, or None when no endpoint can take the connection.

    1. Endpoints count that listen on the port, have an address, a hostname or a network gateway, have weight,
       and are not ``excluded`` (uids). ``for_waypoint`` also lets in an endpoint with an application tunnel
       though the service does not declare the port.
    2. The service's locality preference, compared with ``source``, reduces them.
    3. One is drawn at random, weighted by the workloads' capacity.
    """
    choices = [
        Choice(endpoint.workload, target)
        for endpoint in snapshot.endpoints(service.key)
        if endpoint.workload.uid not in excluded
        and endpoint.workload.capacity > 0
        and _is_reachable(endpoint.workload)
        and (target := target_port(service, endpoint, port, for_waypoint=for_waypoint))
    ]
    if source is not None:
        choices = prefer(service, choices, source)
    return _draw(choices, rng)


def target_port(service: Service, endpoint: Endpoint, port: int, *, for_waypoint: bool = False) -> int:
    """The port an endpoint listens on for a service port, or 0 when it does not.

    The endpoint's own mapping comes before the service's target port.
    """
    declared = service.ports.get(port)
    if declared is None:
        tunnelled = for_waypoint and endpoint.workload.application_tunnel is not None
        return endpoint.ports.get(port, port) if tunnelled else 0
    return endpoint.ports.get(port) or declared.target_port


def _is_reachable(workload: Workload) -> bool:
    return bool(workload.addresses or workload.hostname or workload.network_gateway is not None)


def prefer(service: Service, choices: Sequence[Choice], source: Workload) -> list[Choice]:
    """The choices that the service's locality preference leaves for a client.

    STRICT keeps full matches only; FAILOVER keeps those of the highest rank; the other modes keep all.
    """
    mode, preference = service.load_balancing.mode, service.load_balancing.preference
    if not choices or not preference or mode not in (BalanceMode.STRICT, BalanceMode.FAILOVER):
        return list(choices)
    if mode is BalanceMode.STRICT:
        return [
            choice
            for choice in choices
            if all(_SCOPES[scope](choice.workload) == _SCOPES[scope](source) for scope in preference)
        ]
    ranks = [rank(preference, choice.workload, source) for choice in choices]
    highest = max(ranks)
    return [choice for choice, own in zip(choices, ranks, strict=True) if own == highest]


def rank(preference: Sequence[Scope], workload: Workload, source: Workload) -> int:
    """How many leading scopes match; empty equals empty.

    With NETWORK first, a workload on the client's network gets so much in addition that any such tier comes
    before every tier of another network, where the remaining scopes are counted all the same.
    """
    matched = 0
    for position, scope in enumerate(preference):
        if _SCOPES[scope](workload) == _SCOPES[scope](source):
            matched += len(preference) if position == 0 and scope is Scope.NETWORK else 1
        elif not (position == 0 and scope is Scope.NETWORK):
            break
    return matched


def _draw(choices: Sequence[Choice], rng: random.Random) -> Choice | None:
    if len(choices) < 2:
        return choices[0] if choices else None
    weights = list(accumulate(choice.workload.capacity for choice in choices))
    return rng.choices(choices, cum_weights=weights)[0]
