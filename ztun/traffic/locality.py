"""Nearest first: priorities by locality, failover, and fixed shares per locality.

Sources: Istio ``localityLbSetting`` and Envoy's priority levels. A priority that is partly unhealthy keeps its
share up to an overprovisioning factor of 1.4; the rest spills over to the next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from ztun.mesh.model import Locality
from ztun.traffic.policy import LocalityPolicy

OVERPROVISIONING = 1.4  # Envoy's overprovisioning_factor
ANY = "*"


def priority(client: Locality, endpoint: Locality, policy: LocalityPolicy | None) -> int:
    """0 is the same subzone, 1 the zone, 2 the region, 3 the region to fail over to (or any), 4 the others."""
    if client.region and client.region == endpoint.region:
        if client.zone != endpoint.zone:
            return 2
        return 0 if client.subzone == endpoint.subzone else 1
    target = next((to for origin, to in policy.failover if origin == client.region), None) if policy else None
    return 3 if target is None or target == endpoint.region else 4


def label_priority(
    client: Mapping[str, str], endpoint: Mapping[str, str], failover_priority: Sequence[str]
) -> int:
    """``failoverPriority``: endpoints that share more of the listed labels with the client, in order, come first.

    An entry ``key=value`` asks for that value on the endpoint, whatever the client has.
    """
    for matched, entry in enumerate(failover_priority):
        key, given, value = entry.partition("=")
        if endpoint.get(key) != (value if given else client.get(key)):
            return len(failover_priority) - matched
    return 0


def locality_matches(pattern: str, locality: Locality) -> bool:
    """``region/zone/subzone``; ``*`` and what is left out stand for anything."""
    parts = (locality.region, locality.zone, locality.subzone)
    for wanted, actual in zip(pattern.split("/"), parts, strict=False):
        if wanted == ANY:
            return True
        if wanted != actual:
            return False
    return True


def shares_for(client: Locality, policy: LocalityPolicy) -> Sequence[tuple[str, int]]:
    """The ``distribute`` entry for a client's locality; empty when there is none."""
    for entry in policy.distribute:
        if locality_matches(entry.origin, client):
            return entry.shares
    return ()


def choose_priority(healthy: Sequence[int], total: Sequence[int], rng: random.Random) -> int:
    """The index of a priority level, given the healthy and all endpoints of each.

    Each level takes what its health allows of what is left; when all levels together cannot take everything, the
    shares are scaled up.
    """
    shares: list[float] = []
    left = 100.0
    for good, count in zip(healthy, total, strict=True):
        capacity = min(100.0, OVERPROVISIONING * 100.0 * good / count) if count else 0.0
        shares.append(min(capacity, left))
        left -= shares[-1]
    point = rng.random() * sum(shares)
    for index, share in enumerate(shares):
        point -= share
        if share and point < 0:
            return index
    return max((index for index, share in enumerate(shares) if share), default=0)
