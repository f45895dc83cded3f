"""Diagnostics that a router attaches to its tables: what a rule says that does not do what it seems to say.

The same functions serve the analysis, so a code has one meaning and one text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from waypoint.routes.matching import unsupported_attributes
from waypoint.routes.model import Block, L4Rule, RouteTarget, VirtualService
from waypoint.routes.registry import protocol_kind
from ztun.mesh.document import FieldPath, Severity
from ztun.mesh.model import Service
from ztun.routing import MESH_GATEWAY, Destination, DestinationStatus, Diagnostic

if TYPE_CHECKING:
    from waypoint.routes.destinations import Viewpoint
    from waypoint.routes.index import RouteIndex

AMBIENT_CODES = {
    "destinationSubnets": "AMB-MATCH-SUBNETS",
    "port": "AMB-MATCH-PORT",
    "sourceLabels": "AMB-MATCH-LABELS",
    "sourceNamespace": "AMB-MATCH-NAMESPACE",
}


def about(
    owner: VirtualService, code: str, severity: Severity, path: FieldPath, message: str, hint: str = ""
) -> Diagnostic:
    """A finding about a VirtualService or a route converted to one."""
    return Diagnostic(code, severity, owner.label, path, message, hint, owner.document)


def rule_path(rule: L4Rule) -> FieldPath:
    """``spec.tcp[0]``."""
    return ("spec", rule.section, rule.index)


def block_path(rule: L4Rule, block: Block) -> FieldPath:
    """``spec.tcp[0].match[1]``."""
    return (*rule_path(rule), "match", block.index)


def without_routes(owner: VirtualService, rule: L4Rule) -> Diagnostic:
    """VS-NOROUTE."""
    message = "the rule has no route and is skipped"
    return about(owner, "VS-NOROUTE", "warning", rule_path(rule), message, "add a route or remove the rule")


def ambient_findings(owner: VirtualService, rule: L4Rule) -> Iterator[Diagnostic]:
    """AMB-MATCH-* for each attribute of the object that ambient does not evaluate, AMB-RULE-DROPPED."""
    for block in rule.blocks:
        for attribute in unsupported_attributes(block):
            yield about(
                owner,
                AMBIENT_CODES[attribute],
                "warning",
                (*block_path(rule, block), attribute),
                f"{attribute} is not evaluated in ambient mode; this match block never applies",
                "only gateways is; use a separate Service or host, or sidecar mode for these clients",
            )
    if rule.blocks and all(unsupported_attributes(block) for block in rule.blocks):
        message = f"rule {rule.section}[{rule.index}] can never match in ambient mode"
        yield about(owner, "AMB-RULE-DROPPED", "warning", rule_path(rule), message)


def once_per_object(found: Iterator[Diagnostic]) -> Iterator[Diagnostic]:
    """Each code once per object: the first place stands for all."""
    seen: set[tuple[str, str]] = set()
    for diagnostic in found:
        key = (diagnostic.code, diagnostic.subject)
        if key not in seen:
            seen.add(key)
            yield diagnostic


def weight_findings(owner: VirtualService, rule: L4Rule) -> Iterator[Diagnostic]:
    """WT-*: weights that do not mean what they look like. Routes of the Gateway API have other rules."""
    if rule.explicit_weights:
        return
    path = (*rule_path(rule), "route")
    weights = [target.weight for target in rule.targets]
    if len(weights) == 1:
        if weights[0] not in (None, 100):
            message = f"a single destination takes every connection; weight {weights[0]} has no meaning"
            yield about(owner, "WT-SINGLE", "info", (*path, 0), message)
        return
    if any(weight is not None and weight < 0 for weight in weights):
        yield about(owner, "WT-NEGATIVE", "error", path, "a weight is below 0; it counts as 0")
    total = sum(max(weight or 0, 0) for weight in weights)
    if total == 0:
        message = "all weights are 0 or absent: every connection is closed"
        hint = "give each destination a weight"
        yield about(owner, "WT-TOTAL-ZERO", "error", path, message, hint)
        return
    if total != 100:
        yield about(owner, "WT-SUM", "info", path, f"weights add up to {total}; shares are taken of that sum")
    for at, weight in enumerate(weights):
        if weight is None:
            message = "without a weight this destination gets no connections"
            yield about(owner, "WT-OMITTED", "info", (*path, at), message, "add a weight")
        elif weight == 0:
            yield about(
                owner, "WT-ZERO", "info", (*path, at), "weight 0: this destination gets no connections"
            )


_UNRESOLVED = {
    DestinationStatus.NO_HOST: "DST-NOHOST",
    DestinationStatus.NO_PORT: "DST-NOPORT",
    DestinationStatus.NO_SUBSET: "DST-NOSUBSET",
    DestinationStatus.NO_ENDPOINTS: "DST-NOENDPOINT",
    DestinationStatus.NOT_PERMITTED: "GAPI-REFNOTPERMITTED",
}


def target_path(rule: L4Rule, target: RouteTarget) -> FieldPath:
    """Where a destination stands; the rules of a Gateway API route stand elsewhere than a VirtualService's."""
    at = rule.targets.index(target)
    if rule.explicit_weights:
        return ("spec", "rules", rule.index, "backendRefs", at)
    return (*rule_path(rule), "route", at)


def guessed_port(
    owner: VirtualService, rule: L4Rule, target: RouteTarget, made: Destination
) -> Iterator[Diagnostic]:
    """IST0112 when the port of a destination is that of the connection, for want of a selector."""
    if made.service is not None and target.port is None and len(made.service.ports) > 1:
        ports = ", ".join(str(number) for number in sorted(made.service.ports))
        message = f"{made.host} has several ports ({ports}) and none is selected; the dialled one is used"
        path = target_path(rule, target)
        yield about(owner, "IST0112", "error", path, message, "add destination.port.number")


def unresolved(
    index: RouteIndex,
    owner: VirtualService,
    rule: L4Rule,
    target: RouteTarget,
    made: Destination,
    view: Viewpoint,
) -> Iterator[Diagnostic]:
    """DST-* when a destination cannot take its share."""
    if made.usable:
        return
    path = target_path(rule, target)
    lost = f"{round(float(made.share) * 100, 2):g} % of the connections of this rule are closed"
    messages = {
        DestinationStatus.NO_HOST: f"no service is called {made.host}: {lost}",
        DestinationStatus.NO_PORT: f"{made.host} has no port {made.port}: {lost}",
        DestinationStatus.NO_SUBSET: f"no DestinationRule defines subset {made.subset} of {made.host}: {lost}",
        DestinationStatus.NO_ENDPOINTS: f"{_subset(made)} has no ready endpoint: {lost}",
        DestinationStatus.NOT_PERMITTED: f"no ReferenceGrant permits this backend: {lost}",
    }
    code, message = _UNRESOLVED[made.status], messages[made.status]
    yield about(owner, code, "error", path, message)
    if made.status is DestinationStatus.NO_SUBSET:
        hidden = index.destination_rules.elsewhere(made.host, made.subset)
        if hidden is not None:
            message = f"{hidden.label} defines subset {made.subset}, but does not apply for {view.namespace}"
            yield about(owner, "DR-HIDDEN", "warning", path, message, "see which DestinationRule hides it")


def _subset(made: Destination) -> str:
    return f"subset {made.subset} of {made.host}" if made.subset else f"{made.host}:{made.port}"


def gateway_match_findings(owner: VirtualService, rule: L4Rule) -> Iterator[Diagnostic]:
    """GW-MATCH-OUTSIDE: a gateway that only a match block names can never be the hop."""
    for block in rule.blocks:
        outside = [name for name in block.gateways if name not in owner.gateways]
        for name in outside:
            yield about(
                owner,
                "GW-MATCH-OUTSIDE",
                "error",
                (*block_path(rule, block), "gateways"),
                f"{name} is not in spec.gateways ({', '.join(owner.gateways)}), so it never applies here",
                f"add {name} to spec.gateways or the rule never fires",
            )


def ignored_at_gateway(owner: VirtualService, rule: L4Rule, gateway: str) -> Iterator[Diagnostic]:
    """GW-MATCH-SOURCE and GW-MATCH-SUBNETS: attributes that a gateway does not look at."""
    for block in rule.blocks:
        path = block_path(rule, block)
        if block.source_labels or block.source_namespace:
            name = "sourceLabels" if block.source_labels else "sourceNamespace"
            message = f"{name} is ignored at gateway {gateway}"
            yield about(owner, "GW-MATCH-SOURCE", "warning", (*path, name), message)
        if block.uses_subnets:
            message = f"destinationSubnets is ignored at gateway {gateway}"
            yield about(owner, "GW-MATCH-SUBNETS", "warning", (*path, "destinationSubnets"), message)


def waypoint_findings(owner: VirtualService, rule: L4Rule) -> Iterator[Diagnostic]:
    """WP-*: what Istio's waypoint makes of attributes it cannot evaluate."""
    for block in rule.blocks:
        path = block_path(rule, block)
        if block.source_labels:
            message = "sourceLabels never match at a waypoint: it does not know the client's labels"
            yield about(owner, "WP-LABELS-NEVER", "warning", (*path, "sourceLabels"), message)
        if block.source_namespace:
            message = "sourceNamespace never matches at a waypoint"
            yield about(owner, "WP-NAMESPACE-NEVER", "warning", (*path, "sourceNamespace"), message)
        if block.uses_subnets:
            message = "destinationSubnets is ignored at a waypoint: the block matches every address"
            yield about(owner, "WP-SUBNETS-IGNORED", "warning", (*path, "destinationSubnets"), message)


def foreign_namespace(owner: VirtualService, service: Service, waypoint_namespace: str) -> Diagnostic:
    """WP-NS."""
    message = (
        f"matches {service.hostname}, but a waypoint uses only rules from the service's namespace "
        f"({service.namespace}) and its own ({waypoint_namespace})"
    )
    hint = f"move it to namespace {service.namespace}"
    return about(owner, "WP-NS", "warning", ("metadata", "namespace"), message, hint)


def protocol_findings(owner: VirtualService, service: Service, port: int) -> Iterator[Diagnostic]:
    """PROTO-*: sections that are not read because of the protocol of the service port."""
    kind = protocol_kind(service.ports[port].protocol)
    place = f"port {port} of {service.hostname}"
    if kind == "tcp":
        if owner.http_rules and not owner.tcp:
            message = f"http routes are ignored on TCP {place}"
            hint = "move them to tcp"
            yield about(owner, "PROTO-HTTP-ON-TCP", "error", ("spec", "http"), message, hint)
        if owner.tls and not owner.tcp:
            message = f"tls routes are not used on TCP {place}"
            hint = "move them to tcp, or declare the port as TLS"
            yield about(owner, "PROTO-TLS-ON-TCP", "warning", ("spec", "tls"), message, hint)
    elif kind == "http" and owner.tcp and not owner.http_rules:
        message = f"tcp routes are ignored on HTTP {place}"
        hint = "declare the port as TCP (name it tcp-...)"
        yield about(owner, "PROTO-TCP-ON-HTTP", "warning", ("spec", "tcp"), message, hint)
    elif kind == "tls" and owner.tcp and not owner.tls:
        message = f"tcp routes are ignored on TLS {place}"
        hint = "use tls with sniHosts, or declare the port as TCP"
        yield about(owner, "PROTO-TCP-ON-TLS", "warning", ("spec", "tcp"), message, hint)


def port_findings(owner: VirtualService, rule: L4Rule, service: Service) -> Iterator[Diagnostic]:
    """PORT-NOT-SERVICE: ``port`` is compared with service ports, never with target ports."""
    if MESH_GATEWAY not in owner.gateways:
        return
    targets = {port.target_port: port.number for port in service.ports.values() if port.target_port}
    for block in rule.blocks:
        if not block.port or block.port in service.ports:
            continue
        message = f"port {block.port} is no port of {service.hostname}; the block never matches"
        hint = f"its ports are {', '.join(str(number) for number in sorted(service.ports))}"
        if block.port in targets:
            hint = f"{block.port} is the targetPort of {targets[block.port]}; write {targets[block.port]}"
        path = (*block_path(rule, block), "port")
        yield about(owner, "PORT-NOT-SERVICE", "warning", path, message, hint)
