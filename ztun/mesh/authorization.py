"""Whether a connection may be: DENY before ALLOW, on what the TLS layer and the sockets have proved.

Source: Istio's ``istio.security.Authorization`` as ztunnel evaluates it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from certs.spiffe import SpiffeId
from ztun.mesh.model import (
    Authorization,
    Clause,
    IpNetwork,
    Match,
    NamespacedName,
    PolicyAction,
    Rule,
    StringMatch,
    StringMatchKind,
)

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
T = TypeVar("T")

NOT_ALLOWED = "allow policies exist, but none allowed"


class Attempt(NamedTuple):
    """A connection as policies see it.

    ``source_ip`` is the TCP peer. ``source_identity`` is None for plaintext. The destination is the
    workload's address and the port the application listens on, not the service's.
    """

    source_ip: str
    source_identity: SpiffeId | None
    destination_ip: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """``policy`` is ``namespace/name`` of the one that decided, if one did; ``reason`` is ztunnel's wording.

    ``dry_run`` names the dry-run policies that matched. They never change ``allowed``.
    """

    allowed: bool
    policy: str | None
    reason: str
    dry_run: tuple[str, ...] = ()


def authorize(policies: Sequence[Authorization], attempt: Attempt) -> Verdict:
    """Evaluate the policies that apply to a workload.

    1. A DENY policy that matches denies. 2. Without ALLOW policies the connection is allowed. 3. An ALLOW
    policy that matches allows. 4. Otherwise it is denied. Dry-run policies are evaluated for the report
    alone.
    """
    if not policies:
        return Verdict(True, None, "no policies")
    evaluation = _Evaluation(attempt)
    dry_run = tuple(policy.key for policy in policies if policy.dry_run and evaluation.policy(policy))
    enforced = [policy for policy in policies if not policy.dry_run]
    for policy in enforced:
        if policy.action is PolicyAction.DENY and evaluation.policy(policy):
            return Verdict(False, policy.key, f"explicitly denied by: {policy.key}", dry_run)
    allow = [policy for policy in enforced if policy.action is not PolicyAction.DENY]
    if not allow:
        return Verdict(True, None, "no allow policies", dry_run)
    for policy in allow:
        if evaluation.policy(policy):
            return Verdict(True, policy.key, f"allowed by: {policy.key}", dry_run)
    return Verdict(False, None, NOT_ALLOWED, dry_run)


class _Evaluation:
    """The predicates for one attempt."""

    __slots__ = (
        "_attempt",
        "_destination_ip",
        "_identity",
        "_namespace",
        "_port",
        "_principal",
        "_source_ip",
    )

    def __init__(self, attempt: Attempt) -> None:
        identity = attempt.source_identity
        self._identity = identity
        self._principal = identity.path if identity is not None else None
        self._namespace = identity.namespace if identity is not None else ""
        self._attempt = attempt
        # parsed when a policy asks for them: two fifths of the time of a verdict by identity
        self._source_ip: IpAddress | None = None
        self._destination_ip: IpAddress | None = None
        self._port = attempt.destination_port

    def policy(self, policy: Authorization) -> bool:
        """Any rule; without rules a policy never matches."""
        return any(self._rule(rule) for rule in policy.rules)

    def _rule(self, rule: Rule) -> bool:
        return all(self._clause(clause) for clause in rule)

    def _clause(self, clause: Clause) -> bool:
        return not clause or any(match != _EMPTY_MATCH and self._match(match) for match in clause)

    def _match(self, match: Match) -> bool:
        return (
            _either(match.principals, match.not_principals, self._is_principal)
            and _either(match.namespaces, match.not_namespaces, self._is_namespace)
            and _either(match.service_accounts, match.not_service_accounts, self._is_account)
            and _either(match.source_ips, match.not_source_ips, self._is_source)
            and _either(match.destination_ips, match.not_destination_ips, self._is_destination)
            and _either(match.destination_ports, match.not_destination_ports, self._is_port)
        )

    def _is_principal(self, wanted: StringMatch) -> bool:
        return self._principal is not None and string_matches(wanted, self._principal)

    def _is_namespace(self, wanted: StringMatch) -> bool:
        return string_matches(wanted, self._namespace)

    def _is_account(self, wanted: NamespacedName) -> bool:
        identity = self._identity
        return identity is not None and wanted == (identity.namespace, identity.service_account)

    def _is_source(self, network: IpNetwork) -> bool:
        if self._source_ip is None:
            self._source_ip = ipaddress.ip_address(self._attempt.source_ip)
        return self._source_ip in network

    def _is_destination(self, network: IpNetwork) -> bool:
        if self._destination_ip is None:
            self._destination_ip = ipaddress.ip_address(self._attempt.destination_ip)
        return self._destination_ip in network

    def _is_port(self, port: int) -> bool:
        return port == self._port


_EMPTY_MATCH = Match()


def _either(positive: Sequence[T], negative: Sequence[T], hits: Callable[[T], bool]) -> bool:
    """One attribute type: a positive value hits (or there is none), and no negative value does."""
    return (not positive or any(map(hits, positive))) and not any(map(hits, negative))


def string_matches(wanted: StringMatch, value: str) -> bool:
    """Compare without patterns; the empty value matches nothing."""
    if not value:
        return False
    match wanted.kind:
        case StringMatchKind.EXACT:
            return value == wanted.value
        case StringMatchKind.PREFIX:
            return value.startswith(wanted.value)
        case StringMatchKind.SUFFIX:
            return value.endswith(wanted.value)
        case StringMatchKind.PRESENCE:
            return True
