"""DestinationRule: host, subsets, selector and exportTo; traffic policies are checked in ``traffic_policy``."""

from __future__ import annotations

from waypoint.analysis.report import Report
from waypoint.analysis.syntax import is_host_or_ip, is_label, label_error
from waypoint.analysis.traffic_policy import check_policy
from waypoint.analysis.virtual_service import check_export_to
from waypoint.resources.destination_rule import DestinationRuleSpec
from ztun.mesh.document import Document


def check_destination_rule(document: Document, spec: DestinationRuleSpec, report: Report) -> None:
    """All findings about one DestinationRule by itself."""
    if not spec.host or (spec.host != "*" and not is_host_or_ip(spec.host)):
        message = f"{spec.host!r} is no host" if spec.host else "host is empty"
        report.add(document, "DR-HOST", ("spec", "host"), message, "use the name of a service")
    seen: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        path = ("spec", "subsets", index)
        if not subset.name:
            report.add(document, "DR-SUBSET-NAME", path, "the subset has no name")
        elif not is_label(subset.name):
            message = f"{subset.name!r} is no subset name"
            report.add(document, "DR-SUBSET-NAME", (*path, "name"), message, "use letters, digits and '-'")
        elif subset.name in seen:
            message = f"subset {subset.name} occurs twice; the first counts"
            report.add(document, "DR-SUBSET-DUP", (*path, "name"), message, "rename or remove one")
        seen.add(subset.name)
        error = label_error(subset.labels)
        if error:
            report.add(document, "DR-LABELS", (*path, "labels"), error)
        if subset.traffic_policy is not None:
            check_policy(document, (*path, "trafficPolicy"), subset.traffic_policy, report)
    check_export_to(document, spec.export_to, report)
    _selector(document, spec, report)
    if spec.traffic_policy is not None:
        check_policy(document, ("spec", "trafficPolicy"), spec.traffic_policy, report)


def _selector(document: Document, spec: DestinationRuleSpec, report: Report) -> None:
    selector = spec.workload_selector
    if selector is None:
        return
    path = ("spec", "workloadSelector")
    if not selector.match_labels:
        message = "without matchLabels the rule is taken as one for all clients"
        report.add(document, "DR-SELECTOR-EMPTY", path, message, "add matchLabels or remove the selector")
    error = label_error(selector.match_labels)
    if error:
        report.add(document, "DR-LABELS", (*path, "matchLabels"), error)
    if spec.export_to and tuple(spec.export_to) != (".",):
        message = "a rule with workloadSelector works in its own namespace only"
        report.add(document, "DR-SELECTOR-EXPORT", ("spec", "exportTo"), message, "use exportTo: ['.']")
