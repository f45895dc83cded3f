"""Who a gateway is, and what it listens on. Replaced whole on a reload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from waypoint.gateway.places import Address, Place
from waypoint.gateway.termination import ServerKey, Terminator
from waypoint.routes.gateway_api import GATEWAY_NAME_LABEL
from ztun.mesh.model import Workload
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Hop, HopKind


@dataclass(frozen=True, slots=True)
class Name:
    """Which gateway this is: a pod, or the first pod of a Deployment. ``labels`` add to those of the pod."""

    namespace: str
    name: str
    labels: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def workload(self, snapshot: Snapshot) -> Workload | None:
        """The gateway's own pod, if the mesh has it."""
        found = snapshot.workload_named(self.namespace, self.name)
        if found is not None:
            return found
        pods = [
            one
            for one in snapshot.workloads.values()
            if (one.namespace, one.workload_name) == (self.namespace, self.name)
        ]
        return min(pods, key=lambda one: one.name, default=None)

    def hop(self, workload: Workload) -> Hop:
        """The gateway as engines see it. A Gateway of the Gateway API selects by its own name."""
        labels = {GATEWAY_NAME_LABEL: self.name, **workload.labels, **self.labels}
        return Hop(HopKind.GATEWAY, self.namespace, self.name, MappingProxyType(labels), workload.locality)


@dataclass(frozen=True, slots=True)
class View:
    """What a connection is served by; one keeps the view it arrived under until it is established."""

    workload: Workload
    hop: Hop
    places: Mapping[Address, Place]
    terminators: Mapping[ServerKey, Terminator]
