"""The authorization policies of a gateway: those of its own pod, without what PeerAuthentication adds.

Clients of a gateway come from outside the mesh; that they have no identity is no reason to refuse them (Istio applies
PeerAuthentication to workloads, not to gateways).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ztun.errors import PolicyDenied
from ztun.mesh.authorization import Attempt, authorize
from ztun.resources.peer_authentication import is_converted
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from ztun.mesh.model import Authorization, Workload
    from ztun.mesh.snapshot import Snapshot

_log = get_logger("gateway")


def policies_of(snapshot: Snapshot, gateway: Workload) -> Sequence[Authorization]:
    """The policies that a gateway enforces. Those that selected its pod count on when its document is gone."""
    current = snapshot.workload_by_uid(gateway.uid) or gateway
    return [policy for policy in snapshot.policies_for(current) if not is_converted(policy)]


def admit(snapshot: Snapshot, gateway: Workload, attempt: Attempt) -> None:
    """Raise :class:`PolicyDenied` unless the policies allow a connection."""
    verdict = authorize(policies_of(snapshot, gateway), attempt)
    for policy in verdict.dry_run:
        _log.info("dry-run policy matched", policy=policy, peer=attempt.source_ip)
    if not verdict.allowed:
        raise PolicyDenied(
            "policy_rejection",
            f"connection closed due to policy rejection: {verdict.reason}",
            hint="an authorization policy of the gateway does not allow this source",
        )
