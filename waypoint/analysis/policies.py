"""AuthorizationPolicies that a waypoint never sees, or that nobody enforces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waypoint.analysis.configuration import Configuration
from waypoint.analysis.report import Report
from waypoint.routes.gateway_api import GATEWAY_NAME_LABEL, WAYPOINT_CLASS
from ztun.mesh.document import Document

SECURITY_GROUP = "security.istio.io"


def check_policies(configuration: Configuration, report: Report) -> None:
    """IST0166, IST0167, and IST0101 for targets that do not exist."""
    waypoints = {
        (document.namespace, document.name)
        for document in configuration.of_kind("gateway.networking.k8s.io", "Gateway")
        if _mapping(document.data.get("spec")).get("gatewayClassName") == WAYPOINT_CLASS
    }
    for document in configuration.of_kind(SECURITY_GROUP, "AuthorizationPolicy"):
        spec = _mapping(document.data.get("spec"))
        targets = spec.get("targetRefs")
        for index, target in enumerate(targets if isinstance(targets, list) else ()):
            _target(configuration, document, index, _mapping(target), report)
        labels = _mapping(_mapping(spec.get("selector")).get("matchLabels"))
        wanted = {key: value for key, value in labels.items() if isinstance(value, str)}
        found = configuration.population.selected(wanted, document.namespace) if wanted else []
        if found and all((namespace, pod.get(GATEWAY_NAME_LABEL)) in waypoints for namespace, pod in found):
            message = "the selector selects a waypoint, which reads only policies with targetRefs"
            hint = "use targetRefs with the Gateway or the Service"
            report.add(document, "IST0166", ("spec", "selector"), message, hint)


def _target(
    configuration: Configuration, document: Document, index: int, target: Mapping[str, Any], report: Report
) -> None:
    path = ("spec", "targetRefs", index)
    kind, name = target.get("kind"), target.get("name")
    if kind != "Service" or not isinstance(name, str):
        return
    host = f"{name}.{document.namespace}.svc.{configuration.snapshot.cluster_domain}"
    service = configuration.snapshot.services.get((document.namespace, host))
    if service is None:
        message = f"Service {document.namespace}/{name} does not exist"
        report.add(document, "IST0101", path, message)
    elif service.waypoint is None:
        message = f"Service {name} has no waypoint, so nobody enforces this policy"
        hint = "label the service with istio.io/use-waypoint, or use a selector"
        report.add(document, "IST0167", path, message, hint)


def _mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}
