"""What a connection asks a waypoint for, as a pure function. Whatever is not behind this waypoint is refused."""

from __future__ import annotations

from dataclasses import dataclass

from ztun.mesh.address import AddressError, HostPort, parse_host_port
from ztun.mesh.gateway import is_gateway_instance, is_waypoint_of
from ztun.mesh.inbound import InboundRefused
from ztun.mesh.lookup import OWN_PORTS
from ztun.mesh.model import Service, Workload
from ztun.mesh.snapshot import Snapshot

_BAD_REQUEST = 400
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a service or of a workload, one of which is set.

    ``ip`` is the address that was asked for; it is empty where a name was, which ``host`` then is.
    """

    port: int
    ip: str = ""
    host: str = ""
    service: Service | None = None
    workload: Workload | None = None


def find_target(
    snapshot: Snapshot, local: Workload, authority: str, *, network: str = "", client_namespace: str = ""
) -> Target:
    """Read and resolve the authority of a request to the waypoint instance ``local``.

    An address that several services share means what the client's own namespace means by it. Raises
    :class:`InboundRefused`: ``bad_authority`` (400), ``not_served``, ``no_port`` (404).
    """
    try:
        asked = parse_host_port(authority)
    except AddressError as error:
        raise InboundRefused(
            _BAD_REQUEST, "bad_authority", str(error), hint="the authority must be HOST:PORT"
        ) from error
    if not asked.is_ip:
        return _with_port(asked, _named(snapshot, local, asked))
    workload = snapshot.workload_by_address(network, asked.host)
    if workload is not None:
        if not is_gateway_instance(snapshot, workload.waypoint, local) or asked.port in OWN_PORTS:
            raise not_served(asked, local)
        return Target(asked.port, asked.host, workload=workload)
    for namespace in (client_namespace, None):
        service = snapshot.service_by_vip(network, asked.host, namespace)
        if service is not None and is_waypoint_of(snapshot, service, local):
            return _with_port(asked, service)
    raise not_served(asked, local)


def _named(snapshot: Snapshot, local: Workload, asked: HostPort) -> Service:
    """A name with a wildcard says who owns it, not where it is: only exact ones count."""
    served = [
        service
        for service in snapshot.services_with_hostname(asked.host)
        if is_waypoint_of(snapshot, service, local)
    ]
    if not served:
        raise not_served(asked, local)
    return min(served, key=lambda service: service.namespace != local.namespace)


def _with_port(asked: HostPort, service: Service) -> Target:
    if asked.port not in service.ports:
        declared = ", ".join(str(number) for number in sorted(service.ports)) or "none"
        raise InboundRefused(
            _NOT_FOUND,
            "no_port",
            f"service {service.hostname} has no port {asked.port}",
            hint=f"its ports are: {declared}",
        )
    if asked.is_ip:
        return Target(asked.port, asked.host, service=service)
    return Target(asked.port, host=asked.host, service=service)


def not_served(asked: object, local: Workload) -> InboundRefused:
    """The refusal of what is not behind this waypoint: it is no open proxy."""
    return InboundRefused(
        _NOT_FOUND,
        "not_served",
        f"{asked} is not behind the waypoint of {local.namespace}/{local.name}",
        hint="see istio.io/use-waypoint of the service and istio.io/waypoint-for of the waypoint",
    )
