"""Rules of one VirtualService that can never be reached, and blocks that say nothing new (IST0130, IST0131).

Blocks are compared whole, as Istio does, and beyond that for being implied by an earlier, more general block.
"""

from __future__ import annotations

from collections.abc import Sequence

from waypoint.analysis.report import Report
from waypoint.resources.virtual_service import L4Match, TcpRule, TlsMatch, TlsRule, VirtualServiceSpec
from ztun.mesh.document import Document, FieldPath

MAX_COMPARED_BLOCKS = 512  # every block is compared with every earlier one


def check_reachability(document: Document, spec: VirtualServiceSpec, report: Report) -> None:
    """IST0130 and IST0131 for the ``tcp`` and ``tls`` sections."""
    for section, rules in (("tcp", spec.tcp), ("tls", spec.tls)):
        _check(document, section, rules, report)


def _check(document: Document, section: str, rules: Sequence[TcpRule | TlsRule], report: Report) -> None:
    catch_all: int | None = None
    earlier: list[tuple[int, L4Match]] = []
    for index, rule in enumerate(rules):
        path: FieldPath = ("spec", section, index)
        place = f"{section}[{index}]"
        if catch_all is not None:
            message = f"{place} is never reached: {section}[{catch_all}] takes every connection"
            report.add(document, "IST0130", path, message, "move it up, or remove it")
        repeated = 0
        for at, match in enumerate(rule.match):
            if match is None:
                continue
            known = next((other for other, block in earlier if implies(match, block)), None)
            if known is not None:
                repeated += 1
                message = f"{place}.match[{at}] adds nothing: {section}[{known}] takes these connections"
                report.add(document, "IST0131", (*path, "match", at), message)
        if rule.match and repeated == len(rule.match) and catch_all is None:
            message = f"{place} is never reached: earlier rules take all of its connections"
            report.add(document, "IST0130", path, message, "move it up, or remove it")
        if catch_all is None and (not rule.match or L4Match() in rule.match) and section == "tcp":
            catch_all = index
        if len(earlier) < MAX_COMPARED_BLOCKS:
            earlier += [(index, match) for match in rule.match if match is not None]


def implies(narrow: L4Match, wide: L4Match) -> bool:
    """Whether every connection that ``narrow`` takes is taken by ``wide``.

    Destination subnets decide by longest prefix, not by order, so they have to be the same.
    """
    if set(wide.destination_subnets) != set(narrow.destination_subnets):
        return False
    if wide.port and wide.port != narrow.port:
        return False
    if wide.source_namespace and wide.source_namespace != narrow.source_namespace:
        return False
    if any(narrow.source_labels.get(key) != value for key, value in wide.source_labels.items()):
        return False
    if wide.gateways and not (narrow.gateways and set(narrow.gateways) <= set(wide.gateways)):
        return False
    if isinstance(wide, TlsMatch) and isinstance(narrow, TlsMatch):
        return bool(narrow.sni_hosts) and set(narrow.sni_hosts) <= set(wide.sni_hosts)
    return True
