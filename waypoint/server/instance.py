"""Which waypoint a process is, and which of its pods."""

from __future__ import annotations

from dataclasses import dataclass

from ztun.errors import ConfigError
from ztun.mesh.gateway import is_gateway_instance
from ztun.mesh.model import GatewayAddress, Workload
from ztun.mesh.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class WaypointName:
    """A Gateway of class ``istio-waypoint``."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def address(self, cluster_domain: str) -> GatewayAddress:
        """What stands for it in a snapshot: the service of its name."""
        return GatewayAddress((self.namespace, f"{self.name}.{self.namespace}.svc.{cluster_domain}"))

    def instances(self, snapshot: Snapshot) -> list[Workload]:
        """Its pods, ready or not, by name."""
        address = self.address(snapshot.cluster_domain)
        found = [one for one in snapshot.workloads.values() if is_gateway_instance(snapshot, address, one)]
        return sorted(found, key=lambda one: one.name)


def own_pod(snapshot: Snapshot, waypoint: WaypointName, pod: str = "") -> Workload | None:
    """The pod of this process: the one called ``pod`` (``namespace/name``), else the only one.

    None when it is not there (yet). Raises :class:`ConfigError` when there are several and none was named.
    """
    found = waypoint.instances(snapshot)
    if pod:
        return next((one for one in found if f"{one.namespace}/{one.name}" == pod), None)
    if len(found) > 1:
        names = ", ".join(f"{one.namespace}/{one.name}" for one in found)
        raise ConfigError(
            "several_pods",
            f"the waypoint {waypoint} has several pods: {names}",
            hint="say with --workload which of them this process is",
        )
    return found[0] if found else None
