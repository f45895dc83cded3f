"""Fixes to what a VirtualService matches, and to what every object has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from waypoint.analysis.configuration import Configuration
from waypoint.routes.model import parse_subnet
from waypoint.routes.names import expand_gateway
from ztun.mesh.document import FieldPath
from ztun.routing import MESH_GATEWAY, Diagnostic

L4_MATCH_FIELDS = frozenset({"port", "sourceLabels", "gateways", "sourceNamespace"})
"""What an HTTP match may hold and still mean the same in ``tcp``."""
ROUTE_FIELDS = frozenset({"destination", "weight"})


def at(data: Any, path: FieldPath) -> Any:
    """The value at a path, or None."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def move_http(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """PROTO-HTTP-ON-TCP: ``http`` becomes ``tcp`` when nothing in it needs HTTP."""
    rules = at(data, ("spec", "http"))
    if not isinstance(rules, list) or not rules or data["spec"].get("tcp"):
        return ""
    moved = [_as_tcp(rule) for rule in rules]
    if any(rule is None for rule in moved):
        return ""
    spec = data["spec"]
    data["spec"] = {("tcp" if key == "http" else key): value for key, value in spec.items() if key != "tcp"}
    data["spec"]["tcp"] = moved
    return "http moved to tcp, for the port is TCP"


def _as_tcp(rule: Any) -> dict[str, Any] | None:
    if not isinstance(rule, dict) or not set(rule) <= {"name", "match", "route"}:
        return None
    matches, routes = rule.get("match") or [], rule.get("route")
    if not isinstance(matches, list) or not isinstance(routes, list) or not routes:
        return None
    if not all(isinstance(match, dict) and set(match) <= L4_MATCH_FIELDS | {"name"} for match in matches):
        return None
    if not all(isinstance(route, dict) and set(route) <= ROUTE_FIELDS for route in routes):
        return None
    kept = [{key: value for key, value in match.items() if key != "name"} for match in matches]
    return {**({"match": kept} if kept else {}), "route": routes}


def target_port_to_port(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """PORT-NOT-SERVICE: a target port becomes the service port in front of it."""
    block = at(data, finding.path[:-1])
    if not isinstance(block, dict) or not isinstance(block.get("port"), int):
        return ""
    number = block["port"]
    for owner in configuration.index.virtual_services:
        if owner.label != finding.subject:
            continue
        for service in configuration.services_of(owner):
            for port in service.ports.values():
                if port.target_port == number and number not in service.ports:
                    block["port"] = port.number
                    return f"port {number} is the targetPort of {port.number}"
    return ""


def name_namespace(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """NS-DEFAULTED."""
    if finding.document is None or data["metadata"].get("namespace"):
        return ""
    data["metadata"]["namespace"] = finding.document.namespace
    return f"namespace {finding.document.namespace} written out"


def mask_subnets(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """HOSTBITS."""
    subnets = at(data, finding.path)
    if not isinstance(subnets, list):
        return ""
    masked = []
    for text in subnets:
        subnet = parse_subnet(text) if isinstance(text, str) else None
        masked.append(str(subnet.network) if subnet is not None and subnet.host_bits else text)
    if masked == subnets:
        return ""
    subnets[:] = masked
    return "host bits removed"


def bind_gateway(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """GW-MATCH-OUTSIDE: the gateway of a match is added to ``spec.gateways``, without losing the mesh."""
    named, document = at(data, finding.path), finding.document
    if not isinstance(named, list) or document is None:
        return ""
    gateways = data["spec"].get("gateways") or [MESH_GATEWAY]
    bound = {expand_gateway(name, document.namespace) for name in gateways}
    missing = [name for name in named if expand_gateway(name, document.namespace) not in bound]
    if not missing:
        return ""
    data["spec"]["gateways"] = [*gateways, *dict.fromkeys(missing)]
    return f"{', '.join(missing)} added to spec.gateways"


def qualify_gateway(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """VS-GW-LEGACY."""
    names, index = at(data, finding.path[:-1]), finding.path[-1]
    if not isinstance(names, list) or not isinstance(index, int) or finding.document is None:
        return ""
    old = names[index]
    names[index] = expand_gateway(old, finding.document.namespace)
    return f"{old} written as {names[index]}"


def rename_consecutive_errors(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """OD-DEPRECATED."""
    detection = at(data, finding.path[:-1])
    if not isinstance(detection, dict) or "consecutiveErrors" not in detection:
        return ""
    value = detection.pop("consecutiveErrors")
    detection.setdefault("consecutive5xxErrors", value)
    return "consecutiveErrors renamed to consecutive5xxErrors"


FIXES: Mapping[str, Callable[[Configuration, Diagnostic, dict[str, Any]], str]] = MappingProxyType(
    {
        "PROTO-HTTP-ON-TCP": move_http,
        "PORT-NOT-SERVICE": target_port_to_port,
        "NS-DEFAULTED": name_namespace,
        "HOSTBITS": mask_subnets,
        "GW-MATCH-OUTSIDE": bind_gateway,
        "VS-GW-LEGACY": qualify_gateway,
        "OD-DEPRECATED": rename_consecutive_errors,
    }
)
