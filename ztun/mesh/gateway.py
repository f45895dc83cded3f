"""From the address of a waypoint or network gateway to the workloads behind it."""

from __future__ import annotations

import random

from ztun.mesh.balance import Choice, choose_endpoint
from ztun.mesh.model import GatewayAddress, NetworkAddress, Service, Workload, join_host_port
from ztun.mesh.snapshot import Snapshot


def gateway_service(snapshot: Snapshot, address: GatewayAddress) -> Service | None:
    """The service that a gateway address names, if it names one.

    A (namespace, hostname) is an exact key and no ranking or visibility applies: the mesh itself asks.
    """
    destination = address.destination
    if isinstance(destination, NetworkAddress):
        return snapshot.service_by_vip(destination.network, destination.ip, None)
    return snapshot.services.get(destination)


def gateway_workload(snapshot: Snapshot, address: GatewayAddress) -> Workload | None:
    """The single workload that a gateway address names, if it names no service."""
    destination = address.destination
    if isinstance(destination, NetworkAddress):
        return snapshot.workload_by_address(destination.network, destination.ip)
    return snapshot.workload_by_hostname(*destination)


def resolve_gateway(
    snapshot: Snapshot,
    address: GatewayAddress,
    source: Workload,
    *,
    rng: random.Random,
    excluded: frozenset[str] = frozenset(),
) -> tuple[Choice, Service | None] | None:
    """An instance of the gateway with the port to dial, and the service it was found by, if one is known."""
    service = gateway_service(snapshot, address)
    if service is not None:
        choice = choose_endpoint(
            snapshot,
            service,
            address.hbone_mtls_port,
            source,
            rng=rng,
            excluded=excluded,
            for_waypoint=True,
        )
        return (choice, service) if choice is not None else None
    workload = gateway_workload(snapshot, address)
    if workload is None or workload.uid in excluded:
        return None
    return Choice(workload, address.hbone_mtls_port), None


def is_gateway_instance(snapshot: Snapshot, address: GatewayAddress | None, workload: Workload) -> bool:
    """Whether a workload is one of the instances that a gateway address stands for."""
    if address is None:
        return False
    service = gateway_service(snapshot, address)
    if service is not None:
        # Membership, not readiness: an instance that is draining still forwards what it has taken.
        return service.key in workload.services
    found = gateway_workload(snapshot, address)
    return found is not None and found.uid == workload.uid


def describe_gateway(address: GatewayAddress) -> str:
    """``namespace/hostname`` or ``ip:port``, for messages."""
    destination = address.destination
    if isinstance(destination, NetworkAddress):
        return join_host_port(destination.ip, address.hbone_mtls_port)
    return "/".join(destination)
