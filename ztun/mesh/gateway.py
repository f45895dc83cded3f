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


def resolve_waypoint(
    snapshot: Snapshot,
    service: Service,
    source: Workload,
    *,
    rng: random.Random,
    excluded: frozenset[str] = frozenset(),
) -> tuple[Choice, Service | None] | None:
    """An instance of the service's waypoint, as :func:`resolve_gateway` gives it.

    1. Where the connections are shared, one of the waypoints is drawn by weight; without any weight it is the
    waypoint itself.
    2. A canary that has no instance to offer is not fatal: the waypoint serves.
    """
    assert service.waypoint is not None
    shares = service.weighted_waypoints
    weights = [share.weight for share in shares]
    if any(weights):
        drawn = rng.choices(shares, weights)[0].gateway
        if drawn != service.waypoint:
            found = resolve_gateway(snapshot, drawn, source, rng=rng, excluded=excluded)
            if found is not None:
                return found
    return resolve_gateway(snapshot, service.waypoint, source, rng=rng, excluded=excluded)


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


def is_waypoint_of(snapshot: Snapshot, service: Service, workload: Workload) -> bool:
    """Whether a workload is an instance of the service's waypoint, or of the canary of that."""
    return any(is_gateway_instance(snapshot, address, workload) for address in service.waypoints)


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
