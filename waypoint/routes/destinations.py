"""From the targets of a rule to destinations: weights as exact shares, ports, subsets, endpoints, policy.

A destination that cannot be resolved keeps its share: those connections are accepted and closed. Nothing is guessed
and nothing is redistributed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType

from waypoint.routes.findings import guessed_port, unresolved, weight_findings
from waypoint.routes.index import RouteIndex
from waypoint.routes.model import EffectiveRule, L4Rule, RouteTarget, VirtualService
from waypoint.routes.outcome import Outcome
from waypoint.routes.trace import Trace
from waypoint.routes.traffic import resolve
from ztun.mesh.model import Service
from ztun.routing import (
    Action,
    Destination,
    DestinationStatus,
    Diagnostic,
    Matched,
    RouteEndpoint,
)
from ztun.traffic.policy import DEFAULT_POLICY, TrafficPolicy

UNKNOWN_SERVICE = "UnknownService"


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """Who resolves: which services it sees, and which DestinationRules apply.

    ``waypoint`` selects the order of levels that waypoints use. ``policies`` is false where trafficPolicy has no
    effect (ambient).
    """

    namespace: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    waypoint: bool = False
    policies: bool = True


def effective_rule(index: RouteIndex, view: Viewpoint, service: Service) -> EffectiveRule:
    """The DestinationRules that apply to a service from a viewpoint."""
    rules = index.destination_rules
    if view.waypoint:
        return rules.for_waypoint(service.hostname, service.namespace, view.namespace)
    return rules.for_client(service.hostname, service.namespace, view.namespace, view.labels)


def shares(rule: L4Rule) -> list[tuple[RouteTarget, int]]:
    """Targets with their whole-number weights; those that get nothing are left out.

    A single target takes everything, whatever its weight says, except that a Gateway API weight of 0 is meant.
    """
    if len(rule.targets) == 1 and not rule.explicit_weights:
        return [(rule.targets[0], 1)]
    weighted = [(target, target.weight or 0) for target in rule.targets]
    return [(target, weight) for target, weight in weighted if weight > 0]


def rule_outcome(
    index: RouteIndex,
    view: Viewpoint,
    owner: VirtualService,
    rule: L4Rule,
    block: int | None,
    listener_port: int,
    *,
    service: Service | None,
    diagnostics: Sequence[Diagnostic],
    trace: Trace | None,
) -> Outcome:
    """What a rule that matched does."""
    found = list(diagnostics)
    found += weight_findings(owner, rule)
    weighted = shares(rule)
    total = sum(weight for _, weight in weighted)
    destinations: list[Destination] = []
    first: TrafficPolicy | None = None
    for target, weight in weighted:
        share = Fraction(weight, total)
        made = resolve_target(index, view, target, listener_port, share)
        found += guessed_port(owner, rule, target, made)
        found += unresolved(index, owner, rule, target, made, view)
        first = first or made.policy
        written = target.weight if len(rule.targets) > 1 else None
        destinations.append(replace(made, weight=written, policy=_connection_settings(made.policy, first)))
        if trace is not None:
            trace.add(3, _name(made), f"share {share}, {_state(made)}")
    usable = any(destination.usable for destination in destinations)
    return Outcome(
        Action.ROUTE if usable else Action.REJECT,
        service=service,
        matched=Matched(owner.key, rule.section, rule.index, block),
        destinations=destinations,
        weights=[weight for _, weight in weighted],
        diagnostics=found,
    )


def resolve_target(
    index: RouteIndex, view: Viewpoint, target: RouteTarget, listener_port: int, share: Fraction
) -> Destination:
    """One destination of a rule, resolved as far as it can be."""
    port = target.port or listener_port
    host = target.host or (UNKNOWN_SERVICE if target.permitted else "")
    if not target.permitted:
        return Destination(host, port, share, DestinationStatus.NOT_PERMITTED, target.subset)
    service = index.registry.by_host(host, view.namespace)
    if service is None:
        return Destination(host, port, share, DestinationStatus.NO_HOST, target.subset)
    if target.port is None and len(service.ports) == 1:
        port = next(iter(service.ports))
    if port not in service.ports:
        return Destination(host, port, share, DestinationStatus.NO_PORT, target.subset, service=service)
    return to_service(index, view, service, port, share, target.subset)


def to_service(
    index: RouteIndex,
    view: Viewpoint,
    service: Service,
    port: int,
    share: Fraction = Fraction(1),
    subset_name: str = "",
) -> Destination:
    """A service port, or a subset of it, as a destination."""
    rule = effective_rule(index, view, service)
    subset = rule.subsets.get(subset_name) if subset_name else None
    host = service.hostname
    if subset_name and subset is None:
        status = DestinationStatus.NO_SUBSET
        return Destination(host, port, share, status, subset_name, service=service)
    endpoints = index.registry.endpoints(service, port, subset.labels if subset else None)
    status = DestinationStatus.OK if endpoints else DestinationStatus.NO_ENDPOINTS
    policy = DEFAULT_POLICY
    if view.policies:
        policy = resolve(rule.traffic, subset.traffic if subset else None, port)
    return Destination(
        host, port, share, status, subset_name, service=service, endpoints=endpoints, policy=policy
    )


def fallthrough(
    index: RouteIndex,
    view: Viewpoint,
    service: Service,
    port: int,
    *,
    action: Action = Action.FALLTHROUGH,
    pod: RouteEndpoint | None = None,
    diagnostics: Sequence[Diagnostic] = (),
) -> Outcome:
    """No rule took the connection: the dialled service itself, or the dialled pod of a headless service."""
    made = to_service(index, view, service, port)
    if pod is not None:
        made = replace(made, endpoints=(pod,), status=DestinationStatus.OK)
    return Outcome(action, service=service, destinations=(made,), weights=(1,), diagnostics=diagnostics)


def _connection_settings(policy: TrafficPolicy, first: TrafficPolicy) -> TrafficPolicy:
    """Idle timeout, maximum duration and hash policy come from the first destination of a rule (Istio)."""
    if policy is first:
        return policy
    pool = replace(
        policy.pool,
        idle_timeout=first.pool.idle_timeout,
        max_connection_duration=first.pool.max_connection_duration,
    )
    return replace(policy, pool=pool, hash_source_ip=first.hash_source_ip)


def _name(destination: Destination) -> str:
    subset = f" subset {destination.subset}" if destination.subset else ""
    return f"{destination.host}:{destination.port}{subset}"


def _state(destination: Destination) -> str:
    if not destination.usable:
        return f"unusable ({destination.status.value}): its connections are closed"
    return f"endpoints {', '.join(f'{one.ip}:{one.port}' for one in destination.endpoints)}"
