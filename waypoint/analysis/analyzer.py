"""All checks over a configuration, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from waypoint.analysis.ambient import check_ambient
from waypoint.analysis.codes import CODES
from waypoint.analysis.configuration import Configuration
from waypoint.analysis.conflicts import check_conflicts
from waypoint.analysis.destination_rule import check_destination_rule
from waypoint.analysis.gateway import check_gateway
from waypoint.analysis.gateway_api import check_api_gateway, check_api_route
from waypoint.analysis.policies import check_policies
from waypoint.analysis.protocols import check_protocols
from waypoint.analysis.references import check_references
from waypoint.analysis.report import Report
from waypoint.analysis.virtual_service import check_virtual_service
from waypoint.resources import kinds
from waypoint.resources.destination_rule import DestinationRuleResource
from waypoint.resources.gateway import GatewayResource
from waypoint.resources.gateway_api import ApiGatewayResource, ApiRouteResource
from waypoint.resources.virtual_service import VirtualServiceResource
from ztun.mesh.document import Document, Problem, Severity
from ztun.resources.documents import validate

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


def analyze(configuration: Configuration, *, strict: bool = False) -> list[Problem]:
    """Every finding, worst first, then by place. ``strict`` raises what ambient mode refuses to errors."""
    problems = list(configuration.problems) + list(configuration.index.problems)
    problems += [_reuse(problem) for problem in configuration.problems if _is_reuse(problem)]
    problems += examine(configuration).problems()
    return in_order(_strict(problem, strict) for problem in problems)


def examine(configuration: Configuration) -> Report:
    """All checks, except for what could not be read."""
    report = Report()
    for document in configuration.documents:
        check_document(document, report)
        if document.namespace_defaulted and kinds.kind_of(document) in kinds.ROUTING_KINDS:
            message = f"no namespace is given; {document.namespace} is used, and short names expand in it"
            report.add(document, "NS-DEFAULTED", ("metadata",), message, "add metadata.namespace")
    report.take(configuration.index.conversion_diagnostics)
    check_references(configuration, report)
    check_conflicts(configuration, report)
    check_protocols(configuration, report)
    check_ambient(configuration, report)
    check_policies(configuration, report)
    return report


def check_document(document: Document, report: Report) -> None:
    """What is wrong with one document by itself. Schema problems are not repeated here."""
    kind = kinds.kind_of(document)
    if kind == kinds.VIRTUAL_SERVICE:
        service, _ = validate(VirtualServiceResource, document)
        if service is not None:
            check_virtual_service(document, service.spec, report)
    elif kind == kinds.DESTINATION_RULE:
        rule, _ = validate(DestinationRuleResource, document)
        if rule is not None:
            check_destination_rule(document, rule.spec, report)
    elif kind == kinds.ISTIO_GATEWAY:
        gateway, _ = validate(GatewayResource, document)
        if gateway is not None:
            check_gateway(document, gateway.spec, report)
    elif kind == kinds.API_GATEWAY:
        listeners, _ = validate(ApiGatewayResource, document)
        if listeners is not None:
            check_api_gateway(document, listeners.spec, report)
    elif kind in (kinds.TCP_ROUTE, kinds.TLS_ROUTE):
        route, _ = validate(ApiRouteResource, document)
        if route is not None:
            check_api_route(document, route.spec, report)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Worst first, then by file, line and column; without repetitions."""
    return sorted(
        dict.fromkeys(problems),
        key=lambda one: (
            SEVERITIES.index(one.severity),
            one.location is None,
            (one.location.file, one.location.line, one.location.column) if one.location else ("", 0, 0),
            one.code,
            one.message,
        ),
    )


def _strict(problem: Problem, strict: bool) -> Problem:
    known = CODES.get(problem.code)
    if strict and known is not None and known.strict:
        return replace(problem, severity="error")
    return problem


def _is_reuse(problem: Problem) -> bool:
    return problem.code == "DUPLICATE" and problem.object.startswith("VirtualService ")


def _reuse(problem: Problem) -> Problem:
    """VS-NAME-REUSE beside the general finding: examples that all use one name replace each other."""
    hint = "give each VirtualService a name of its own if they are meant to be used together"
    return replace(problem, code="VS-NAME-REUSE", severity="info", hint=hint)
