"""Gateway API objects by themselves: waypoint listeners, the shape of routes."""

from __future__ import annotations

from waypoint.analysis.report import Report
from waypoint.resources.gateway_api import ApiGatewaySpec, ApiRouteSpec
from waypoint.routes.gateway_api import WAYPOINT_CLASS
from ztun.mesh.document import Document
from ztun.mesh.model import HBONE_PORT

MAX_BACKEND_WEIGHT = 1_000_000  # Gateway API


def check_api_gateway(document: Document, spec: ApiGatewaySpec, report: Report) -> None:
    """GAPI-WAYPOINT-LISTENER: a waypoint has exactly one listener, HBONE on its port."""
    if spec.gateway_class_name != WAYPOINT_CLASS:
        return
    hint = f"a waypoint has one listener: name mesh, port {HBONE_PORT}, protocol HBONE"
    hbone = 0
    for index, listener in enumerate(spec.listeners):
        if listener.protocol == "HBONE" and listener.port == HBONE_PORT:
            hbone += 1
            continue
        message = (
            f"listener {listener.name} ({listener.protocol} {listener.port}) is not possible on a waypoint"
        )
        report.add(document, "GAPI-WAYPOINT-LISTENER", ("spec", "listeners", index), message, hint)
    if hbone != 1:
        message = f"{hbone} HBONE listeners on port {HBONE_PORT}"
        report.add(document, "GAPI-WAYPOINT-LISTENER", ("spec", "listeners"), message, hint)


def check_api_route(document: Document, spec: ApiRouteSpec, report: Report) -> None:
    """GAPI-RULES and the range of weights."""
    path = ("spec", "rules")
    if len(spec.rules) != 1:
        message = f"a {document.kind} has exactly one rule, not {len(spec.rules)}"
        report.add(document, "GAPI-RULES", path, message)
    for index, rule in enumerate(spec.rules):
        if not rule.backend_refs:
            report.add(document, "GAPI-RULES", (*path, index), "the rule has no backendRefs")
        for at, backend in enumerate(rule.backend_refs):
            place = (*path, index, "backendRefs", at)
            if not 0 <= backend.weight <= MAX_BACKEND_WEIGHT:
                message = f"weight {backend.weight} is outside 0 to {MAX_BACKEND_WEIGHT}"
                report.add(document, "GAPI-RULES", (*place, "weight"), message)
            if backend.port is None and backend.kind == "Service":
                report.add(document, "GAPI-RULES", place, "a Service needs a port", "add port")
