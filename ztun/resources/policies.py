"""AuthorizationPolicies to the form that is evaluated.

Layer-7 conditions cannot be decided here. In ALLOW a rule that has one is left out, so it allows nothing. In
DENY such a condition is left out and what remains of the rule denies; a rule of which nothing remains is
dropped and reported. A policy that is not valid denies: see :func:`closed_policy`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pydantic

from ztun.mesh.document import Document, FieldPath, Problem
from ztun.mesh.model import (
    Authorization,
    Clause,
    IpNetwork,
    Match,
    NamespacedName,
    PolicyAction,
    PolicyScope,
    Rule,
    StringMatch,
    StringMatchKind,
)
from ztun.resources.schema import DRY_RUN, WAYPOINT_CLASS
from ztun.resources.security import (
    CONDITION_KEYS,
    AuthorizationPolicy,
    Operation,
    PolicyRule,
    PolicyTarget,
    Source,
    When,
    check_port,
)
from ztun.resources.settings import MeshSettings

UNREAD_NAME = "configuration-not-read"  # what the log of a denied connection names

HTTP_SOURCE = frozenset(
    {"request_principals", "not_request_principals", "remote_ip_blocks", "not_remote_ip_blocks"}
)
HTTP_OPERATION = frozenset({"hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths"})
MATCH_ALL: tuple[Rule, ...] = ((),)
"""Rules that match everything: one rule without clauses."""
EMPTY = Match()


def compile_policy(
    document: Document, policy: AuthorizationPolicy, settings: MeshSettings
) -> tuple[Authorization | None, list[Problem]]:
    """The policy to enforce; None for actions that a layer-4 proxy does not take (AUDIT, CUSTOM)."""
    spec = policy.spec
    if spec.action in ("AUDIT", "CUSTOM"):
        message = f"{spec.action} policies have no effect here"
        hint = "only ALLOW and DENY are enforced on connections"
        severity = "info" if spec.action == "AUDIT" else "warning"
        return None, [_note(document, ("spec", "action"), message, hint, severity)]
    problems: list[Problem] = []
    action = PolicyAction.DENY if spec.action == "DENY" else PolicyAction.ALLOW
    rules: list[Rule] = []
    for index, rule in enumerate(spec.rules):
        path: FieldPath = ("spec", "rules", index)
        compiled, http = _rule(rule, action, document.namespace)
        if compiled is not None:
            rules.append(compiled)
        if http:
            problems.append(_http_problem(document, path, action, http, dropped=compiled is None))
    return Authorization(
        name=document.name,
        namespace=document.namespace,
        scope=_scope(document, bool(selector_of(policy)), settings),
        action=action,
        rules=tuple(rules),
        dry_run=_is_dry_run(policy.metadata.annotation(DRY_RUN)),
        target_refs=tuple((target.group, target.kind, target.name) for target in spec.targets),
    ), problems


def foreign_targets(document: Document, policy: AuthorizationPolicy) -> list[Problem]:
    """Why a policy is not valid in the namespace it stands in: it can be attached in its own only."""
    return [
        document.problem(
            ("spec", "targetRef") if policy.spec.target_ref is not None else ("spec", "targetRefs", index),
            f"{target.kind} {target.namespace}/{target.name} is in another namespace",
            hint="attach it in its own namespace",
        )
        for index, target in enumerate(policy.spec.targets)
        if _is_foreign(target, document)
    ]


def _is_foreign(target: PolicyTarget, document: Document) -> bool:
    return target.namespace not in (None, "", document.namespace)


def _is_dry_run(annotation: object) -> bool:
    return str(annotation).lower() == "true"


def selector_of(policy: AuthorizationPolicy) -> Mapping[str, str]:
    """The labels that select the workloads of a policy; empty when it covers its whole namespace."""
    return policy.spec.selector.match_labels if policy.spec.selector is not None else {}


def _scope(document: Document, selected: bool, settings: MeshSettings) -> PolicyScope:
    if selected:
        return PolicyScope.WORKLOAD_SELECTOR
    in_root = document.namespace == settings.root_namespace
    return PolicyScope.GLOBAL if in_root else PolicyScope.NAMESPACE


def _note(document: Document, path: FieldPath, message: str, hint: str, severity: Any) -> Problem:
    return document.problem(path, message, hint=hint, code="AUTHZ", severity=severity)


def _http_problem(
    document: Document, path: FieldPath, action: PolicyAction, http: Sequence[str], *, dropped: bool
) -> Problem:
    named = ", ".join(dict.fromkeys(http))
    if action is PolicyAction.ALLOW:
        message = f"HTTP conditions ({named}) cannot be decided on connections: the rule is left out"
    elif dropped:
        message = (
            f"only HTTP conditions ({named}), which cannot be decided on connections: the rule is dropped"
        )
    else:
        message = f"HTTP conditions ({named}) are left out: the rule denies more than it says"
    hint = "use ports and identities, or a proxy that reads HTTP"
    return document.problem(path, message, hint=hint, code="AUTHZ-L7", severity="warning")


def _rule(rule: PolicyRule, action: PolicyAction, namespace: str) -> tuple[Rule | None, list[str]]:
    """The rule as clauses (to, from, one per ``when``) or None when left out; the HTTP conditions found."""
    http: list[str] = []
    clauses: list[Clause] = []
    partial: list[Clause] = []
    sources = [entry.source for entry in rule.from_]
    operations = [entry.operation for entry in rule.to]
    for matches in (
        [_operation(one, http) for one in operations],
        [_source(one, namespace, http) for one in sources],
    ):
        kept = tuple(match for match in matches if match != EMPTY)
        if len(kept) == len(matches):
            clauses += [kept] if kept else []
        elif kept:
            partial.append(kept)
    for condition in rule.when:
        if condition.key in CONDITION_KEYS:
            clauses.append((_condition(condition, namespace),))
        else:
            http.append(condition.key)
    if not http:
        return tuple(clauses), http
    if action is PolicyAction.ALLOW:
        return None, http
    # An alternative of which nothing remains matches all, and with it its clause. Only where that would leave
    # the rule without any clause is the clause kept with the alternatives that can be decided.
    remaining = clauses or partial
    return (tuple(remaining) if remaining else None), http


def _source(source: Source, namespace: str, http: list[str]) -> Match:
    http += [_alias(Source, name) for name in sorted(source.model_fields_set & HTTP_SOURCE)]
    return Match(
        namespaces=_strings(source.namespaces),
        not_namespaces=_strings(source.not_namespaces),
        principals=_strings(source.principals),
        not_principals=_strings(source.not_principals),
        service_accounts=_accounts(source.service_accounts, namespace),
        not_service_accounts=_accounts(source.not_service_accounts, namespace),
        source_ips=_networks(source.ip_blocks),
        not_source_ips=_networks(source.not_ip_blocks),
    )


def _operation(operation: Operation, http: list[str]) -> Match:
    http += [_alias(Operation, name) for name in sorted(operation.model_fields_set & HTTP_OPERATION)]
    return Match(destination_ports=_ports(operation.ports), not_destination_ports=_ports(operation.not_ports))


def _alias(model: type[pydantic.BaseModel], name: str) -> str:
    return model.model_fields[name].alias or name


_CONDITIONS: Mapping[str, Callable[[Sequence[str], Sequence[str], str], Match]] = {
    "source.ip": lambda yes, no, _: Match(source_ips=_networks(yes), not_source_ips=_networks(no)),
    "source.namespace": lambda yes, no, _: Match(namespaces=_strings(yes), not_namespaces=_strings(no)),
    "source.principal": lambda yes, no, _: Match(principals=_strings(yes), not_principals=_strings(no)),
    "source.serviceAccount": lambda yes, no, own: Match(
        service_accounts=_accounts(yes, own), not_service_accounts=_accounts(no, own)
    ),
    "destination.ip": lambda yes, no, _: Match(
        destination_ips=_networks(yes), not_destination_ips=_networks(no)
    ),
    "destination.port": lambda yes, no, _: Match(
        destination_ports=_ports(yes), not_destination_ports=_ports(no)
    ),
}


def _condition(condition: When, namespace: str) -> Match:
    yes = [str(value) for value in condition.values]
    no = [str(value) for value in condition.not_values]
    return _CONDITIONS[condition.key](yes, no, namespace)


def _strings(values: Sequence[str]) -> tuple[StringMatch, ...]:
    return tuple(string_match(value) for value in values)


def string_match(text: str) -> StringMatch:
    """``*`` is presence, ``a*`` a prefix, ``*a`` a suffix, anything else exact."""
    if text == "*":
        return StringMatch(StringMatchKind.PRESENCE)
    if text.endswith("*"):
        return StringMatch(StringMatchKind.PREFIX, text[:-1])
    if text.startswith("*"):
        return StringMatch(StringMatchKind.SUFFIX, text[1:])
    return StringMatch(StringMatchKind.EXACT, text)


def _accounts(values: Sequence[str], namespace: str) -> tuple[NamespacedName, ...]:
    found: list[NamespacedName] = []
    for value in values:
        owner, separator, name = value.rpartition("/")
        found.append((owner if separator else namespace, name))
    return tuple(found)


def _networks(values: Sequence[str]) -> tuple[IpNetwork, ...]:
    return tuple(ipaddress.ip_network(value, strict=False) for value in values)


def _ports(values: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(check_port(value) for value in values)


def closed_policy(
    document: Document, settings: MeshSettings
) -> tuple[Authorization | None, Mapping[str, str], str]:
    """What stands in for a policy that is not valid and has no earlier valid version.

    An ALLOW policy becomes one that allows nothing, any other one that denies everything, for as much of its
    scope as can still be read: a selector or target that cannot be read widens it to the namespace. AUDIT denies
    nothing, whatever else is in it, and what is to be tried out is only tried out. Returns the policy, the labels it
    selects by, and what it does in words.
    """
    raw = document.data.get("spec")
    spec: dict[str, Any] = raw if isinstance(raw, dict) else {}
    given = spec.get("action", "ALLOW")
    if given == "AUDIT":
        return None, {}, "has no effect"
    action = PolicyAction.ALLOW if given == "ALLOW" else PolicyAction.DENY
    targets = _readable_targets(document, spec)
    labels = {} if targets else readable_labels(spec)
    effect = "allows nothing" if action is PolicyAction.ALLOW else "denies everything"
    annotations = document.data["metadata"].get("annotations")
    policy = Authorization(
        name=document.name,
        namespace=document.namespace,
        scope=_scope(document, bool(labels), settings),
        action=action,
        rules=() if action is PolicyAction.ALLOW else MATCH_ALL,
        dry_run=isinstance(annotations, dict) and _is_dry_run(annotations.get(DRY_RUN)),
        target_refs=targets,
    )
    where = "what it is attached to" if targets else "the workloads it selects" if labels else "its namespace"
    tried = ", as a dry run" if policy.dry_run else ""
    return policy, labels, f"{effect} for {where}{tried}"


def unread_policies(settings: MeshSettings) -> list[Authorization]:
    """What stands in for policies that may be in a file which never could be read: everything is denied.

    One for workloads, one for waypoints, whose policies are attached to them.
    """
    everywhere = Authorization(
        name=UNREAD_NAME,
        namespace=settings.root_namespace,
        scope=PolicyScope.GLOBAL,
        action=PolicyAction.DENY,
        rules=MATCH_ALL,
    )
    waypoints = ("gateway.networking.k8s.io", "GatewayClass", WAYPOINT_CLASS)
    return [everywhere, replace(everywhere, name=f"{UNREAD_NAME}-waypoints", target_refs=(waypoints,))]


def _readable_targets(document: Document, spec: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """What a policy is attached to if all of it can be read, else nothing."""
    single, several = spec.get("targetRef"), spec.get("targetRefs", [])
    found: list[tuple[str, str, str]] = []
    for raw in [
        *([single] if single is not None else []),
        *(several if isinstance(several, list) else [None]),
    ]:
        try:
            target = PolicyTarget.model_validate(raw)
        except pydantic.ValidationError:
            return ()
        if _is_foreign(target, document):
            return ()
        found.append((target.group, target.kind, target.name))
    return tuple(found)


def readable_labels(spec: Mapping[str, Any]) -> Mapping[str, str]:
    """The labels of a selector if all of them can be read, else none."""
    selector = spec.get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        return {}
    return labels
