"""``loadBalancer`` of a traffic policy."""

from __future__ import annotations

from waypoint.analysis.report import Report
from waypoint.analysis.syntax import duration_error, is_prime
from waypoint.resources.destination_rule import ConsistentHash, LoadBalancer, LocalityLb, WarmupConfig
from waypoint.routes.traffic import MAX_MAGLEV_SIZE
from ztun.mesh.document import Document, FieldPath


def check_load_balancer(
    document: Document, path: FieldPath, spec: LoadBalancer, report: Report, *, outlier: bool
) -> None:
    """All findings about one loadBalancer; ``outlier`` tells whether outlierDetection is set beside it."""
    if spec.simple is not None and spec.consistent_hash is not None:
        message = "simple and consistentHash cannot be combined"
        report.add(document, "LB-CHOICE", path, message, "keep one of the two")
    if spec.consistent_hash is not None:
        _hash(document, (*path, "consistentHash"), spec.consistent_hash, report)
    if spec.locality_lb_setting is not None:
        if spec.zone_aware_lb_setting is not None:
            message = "localityLbSetting and zoneAwareLbSetting cannot be combined"
            report.add(document, "LB-LOCALITY-ZONE", path, message, "keep one of the two")
        at = (*path, "localityLbSetting")
        _locality(document, at, spec.locality_lb_setting, report, outlier=outlier)
    if spec.warmup is not None:
        _warmup(document, (*path, "warmup"), spec.warmup, report)
    if spec.warmup_duration_secs:
        error = duration_error(spec.warmup_duration_secs)
        if error:
            report.add(document, "DURATION", (*path, "warmupDurationSecs"), error)


def _hash(document: Document, path: FieldPath, spec: ConsistentHash, report: Report) -> None:
    if spec.maglev is not None and spec.maglev.table_size:
        size = spec.maglev.table_size
        if size > MAX_MAGLEV_SIZE or not is_prime(size):
            message = f"tableSize {size} is not a prime up to {MAX_MAGLEV_SIZE}"
            report.add(document, "LB-MAGLEV", (*path, "maglev", "tableSize"), message, "e.g. 65537")
    cookie = spec.http_cookie
    if cookie is not None:
        names = [str(entry.get("name", "")) for entry in cookie.attributes]
        if not cookie.name:
            report.add(document, "LB-HASH-COOKIE", (*path, "httpCookie"), "the cookie has no name")
        if len(set(names)) != len(names):
            at = (*path, "httpCookie", "attributes")
            report.add(document, "LB-HASH-COOKIE", at, "an attribute occurs twice")
    if not spec.use_source_ip:
        message = "raw TCP has nothing to hash but the client's address"
        report.add(document, "TP-NO-EFFECT", path, message, "set useSourceIp: true")


def _locality(
    document: Document, path: FieldPath, spec: LocalityLb, report: Report, *, outlier: bool
) -> None:
    def wrong(at: FieldPath, message: str, hint: str = "") -> None:
        report.add(document, "LB-LOCALITY", (*path, *at), message, hint)

    if spec.distribute and (spec.failover or spec.failover_priority):
        wrong((), "distribute and failover cannot be combined", "keep one of the two")
    origins: list[str] = []
    for index, entry in enumerate(spec.distribute):
        total = sum(entry.to.values())
        if total not in (0, 100) or any(weight < 0 for weight in entry.to.values()):
            wrong(("distribute", index, "to"), f"the shares add up to {total}, not to 100")
        if any(overlapping(entry.origin, other) for other in origins):
            wrong(("distribute", index, "from"), f"{entry.origin} overlaps with an earlier entry")
        origins.append(entry.origin)
    for index, pair in enumerate(spec.failover):
        if not pair.origin or not pair.to:
            wrong(("failover", index), "from and to must both name a region")
        elif pair.origin == pair.to:
            wrong(("failover", index), f"{pair.origin} fails over to itself")
    if (spec.failover or spec.failover_priority) and not outlier:
        message = "failover triggers only when outlierDetection finds failing endpoints"
        report.add(document, "LB-FAILOVER-NO-OD", path, message, "add outlierDetection")


def overlapping(one: str, other: str) -> bool:
    """Whether two localities (``region/zone/subzone``, ``*`` for any rest) have places in common."""
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if "*" in (left, right):
            return True
        if left != right:
            return False
    return True


def _warmup(document: Document, path: FieldPath, spec: WarmupConfig, report: Report) -> None:
    error = duration_error(spec.duration) if spec.duration else "duration is required"
    if error:
        report.add(document, "LB-WARMUP", path, error)
    if spec.minimum_percent is not None and not 0 <= spec.minimum_percent <= 100:
        report.add(document, "LB-WARMUP", (*path, "minimumPercent"), "it must be from 0 to 100")
    if spec.aggression is not None and spec.aggression < 1:
        report.add(document, "LB-WARMUP", (*path, "aggression"), "it must be at least 1")
