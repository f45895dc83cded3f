"""The authorization policies that a waypoint enforces: those attached to it or to what it serves.

Policies that select pods are for the node proxies and have no effect here. Source: Istio's ``targetRefs``.
"""

from __future__ import annotations

from collections.abc import Sequence

from waypoint.server.instance import WaypointName
from waypoint.server.target import Target
from ztun.mesh.model import Authorization
from ztun.mesh.snapshot import Snapshot
from ztun.resources.schema import WAYPOINT_CLASS
from ztun.routing import DEFAULT_ROOT_NAMESPACE

GATEWAY_API = "gateway.networking.k8s.io"
ISTIO_API = "networking.istio.io"


def policies_for(snapshot: Snapshot, waypoint: WaypointName, target: Target) -> Sequence[Authorization]:
    """Of the waypoint's Gateway, of its class (in the root namespace), and of the service that is dialled.

    A policy that is attached to several of them counts once.
    """
    found = [
        *snapshot.policies_targeting(DEFAULT_ROOT_NAMESPACE, GATEWAY_API, "GatewayClass", WAYPOINT_CLASS),
        *snapshot.policies_targeting(waypoint.namespace, GATEWAY_API, "Gateway", waypoint.name),
    ]
    service = target.service
    if service is not None:
        found += snapshot.policies_targeting(service.namespace, "", "Service", service.name)
        found += snapshot.policies_targeting(service.namespace, ISTIO_API, "ServiceEntry", service.name)
    return tuple({policy.key: policy for policy in found}.values())
