"""Routing at a waypoint: the first rule that matches, the same for every client.

Only VirtualServices of the service's or the waypoint's own namespace are candidates. In the ambient dialect only the
``tcp`` section counts; Istio's own waypoint looks at all ``tls`` rules first, of which only one for exactly the
service's name counts, on any port.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from waypoint.routes.destinations import Viewpoint, effective_rule, fallthrough, rule_outcome
from waypoint.routes.findings import (
    about,
    ambient_findings,
    foreign_namespace,
    gateway_match_findings,
    once_per_object,
    port_findings,
    protocol_findings,
    waypoint_findings,
    without_routes,
)
from waypoint.routes.index import RouteIndex, in_order_for
from waypoint.routes.matching import Asking, Dialect, refusal
from waypoint.routes.model import L4Rule, VirtualService
from waypoint.routes.outcome import Outcome
from waypoint.routes.registry import protocol_kind
from waypoint.routes.subnets import subnet_findings
from waypoint.routes.trace import Trace
from ztun.mesh.model import Service
from ztun.routing import MESH_GATEWAY, Action, Diagnostic


class SubsetPolicy:
    """What ambient does with a rule that names subsets: resolve them, or skip the whole rule."""

    RESOLVE = "resolve"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class WaypointRules:
    """How a waypoint reads the configuration."""

    dialect: Dialect
    subset_policy: str = SubsetPolicy.RESOLVE

    @property
    def ambient(self) -> bool:
        """Whether the ambient rule applies."""
        return self.dialect is Dialect.AMBIENT


def build_waypoint_outcome(
    index: RouteIndex,
    rules: WaypointRules,
    service: Service,
    port: int,
    namespace: str,
    trace: Trace | None = None,
) -> Outcome:
    """What a waypoint in ``namespace`` does with connections to a service port."""
    return _Walk(index, rules, service, port, namespace, trace).outcome()


class _Walk:
    def __init__(
        self,
        index: RouteIndex,
        rules: WaypointRules,
        service: Service,
        port: int,
        namespace: str,
        trace: Trace | None,
    ) -> None:
        self._index = index
        self._rules = rules
        self._service = service
        self._port = port
        self._namespace = namespace
        self._trace = trace
        self._asking = Asking(MESH_GATEWAY, port)
        self._view = Viewpoint(namespace, waypoint=True, policies=not rules.ambient)
        self._found: list[Diagnostic] = []

    def outcome(self) -> Outcome:
        owners = self._owners()
        for owner in owners:
            self._found += self._about(owner)
        if protocol_kind(self._service.ports[self._port].protocol) == "http":
            self._note(1, self._service.hostname, f"port {self._port} is HTTP: layer 4 rules are not used")
            return self._default(Action.HTTP_LAYER)
        for owner, rule in self._rules_in_order(owners):
            taken, block = self._takes(rule)
            if taken:
                self._found += list(self._policy_findings(rule))
                return rule_outcome(
                    self._index,
                    self._view,
                    owner,
                    rule,
                    block,
                    self._port,
                    service=self._service,
                    diagnostics=self._found,
                    trace=self._trace,
                )
        self._note(1, self._service.hostname, "no rule took the connection: the service itself")
        return self._default(Action.FALLTHROUGH)

    def _default(self, action: Action) -> Outcome:
        return fallthrough(
            self._index, self._view, self._service, self._port, action=action, diagnostics=self._found
        )

    def _note(self, depth: int, subject: str, outcome: str) -> None:
        if self._trace is not None:
            self._trace.add(depth, subject, outcome)

    def _owners(self) -> list[VirtualService]:
        service = self._service
        bound = self._index.mesh_candidates(service.hostname)
        seen = in_order_for(self._namespace, bound)
        owners = [one for one in seen if one.namespace in (service.namespace, self._namespace)]
        for owner in seen:
            if owner not in owners:
                self._found.append(foreign_namespace(owner, service, self._namespace))
        if self._trace is not None:
            known = {id(owner) for owner in owners}
            for other in self._index.candidates(service.hostname):
                if id(other) in known:
                    continue
                if MESH_GATEWAY not in other.gateways:
                    reason = f"bound to {', '.join(other.gateways)}, not to mesh"
                elif other in seen:
                    reason = f"its namespace is neither {service.namespace} nor {self._namespace}"
                else:
                    reason = f"not exported to the waypoint's namespace {self._namespace}"
                self._note(1, other.label, f"not considered: {reason}")
        return owners

    def _about(self, owner: VirtualService) -> Iterator[Diagnostic]:
        yield from protocol_findings(owner, self._service, self._port)
        rules = (*owner.tcp, *owner.tls)
        for rule in rules:
            if not rule.targets and not rule.explicit_weights:
                yield without_routes(owner, rule)
            yield from gateway_match_findings(owner, rule)
        if self._rules.ambient:
            yield from once_per_object(
                finding for rule in owner.tcp if rule.targets for finding in ambient_findings(owner, rule)
            )
            if owner.tls:
                yield about(
                    owner, "AMB-TLS", "info", ("spec", "tls"), "tls routes are not used in ambient mode"
                )
            return
        for rule in rules:
            yield from port_findings(owner, rule, self._service)
            yield from subnet_findings(owner, rule, self._service)
            yield from waypoint_findings(owner, rule)

    def _rules_in_order(self, owners: list[VirtualService]) -> Iterator[tuple[VirtualService, L4Rule]]:
        if not self._rules.ambient:
            for owner in owners:
                yield from self._usable(owner, owner.tls)
        for owner in owners:
            self._note(1, owner.label, "considered")
            yield from self._usable(owner, owner.tcp)

    def _usable(
        self, owner: VirtualService, rules: tuple[L4Rule, ...]
    ) -> Iterator[tuple[VirtualService, L4Rule]]:
        for rule in rules:
            place = f"{rule.section}[{rule.index}]"
            if not rule.targets and not rule.explicit_weights:
                self._note(2, place, "skipped: no route")
                continue
            if self._rules.ambient and self._rules.subset_policy == SubsetPolicy.SKIP:
                subset = next((target.subset for target in rule.targets if target.subset), "")
                if subset:
                    message = f"subset {subset} is not resolved in ambient mode; rule skipped"
                    path = ("spec", rule.section, rule.index, "route")
                    self._found.append(about(owner, "AMB-SUBSET", "warning", path, message))
                    self._note(2, place, f"skipped: {message}")
                    continue
            yield owner, rule

    def _takes(self, rule: L4Rule) -> tuple[bool, int | None]:
        if not rule.blocks:
            self._note(2, f"{rule.section}[{rule.index}]", "has no match: taken")
            return True, None
        for block in rule.blocks:
            reason = refusal(self._rules.dialect, block, self._asking)
            if not reason and rule.section == "tls" and block.sni_hosts != (self._service.hostname,):
                reason = f"sniHosts is not exactly {self._service.hostname}"
            place = f"{rule.section}[{rule.index}].match[{block.index}]"
            self._note(2, place, f"does not apply: {reason}" if reason else "applies: taken")
            if not reason:
                return True, block.index
        return False, None

    def _policy_findings(self, rule: L4Rule) -> Iterator[Diagnostic]:
        """AMB-DR-POLICY for the destinations in use."""
        if not self._rules.ambient:
            return
        for target in rule.targets:
            service = self._index.registry.by_host(target.host, self._namespace)
            effective = effective_rule(self._index, self._view, service) if service else None
            if effective is None or not effective.has_policy:
                continue
            for source in effective.sources:
                if source.traffic is not None or any(subset.traffic for subset in source.subsets):
                    yield Diagnostic(
                        "AMB-DR-POLICY",
                        "info",
                        source.label,
                        ("spec", "trafficPolicy"),
                        "trafficPolicy has no effect in ambient mode; only subsets are used",
                        "",
                        source.document,
                    )
