"""What an inbound CONNECT request asks for: the check and resolution of its authority, as a pure function."""

from __future__ import annotations

from typing import NamedTuple

from ztun.errors import ZtunError
from ztun.mesh.address import AddressError, HostPort, parse_host_port
from ztun.mesh.gateway import is_gateway_instance, is_waypoint_of
from ztun.mesh.lookup import OWN_PORTS
from ztun.mesh.model import AppTunnelProtocol, NamespacedName, Service, Workload
from ztun.mesh.snapshot import Snapshot


class InboundRefused(ZtunError):
    """The request cannot be served; ``status`` is the HTTP status to answer with (400, 404 or 503)."""

    stage = "connect-response"

    def __init__(self, status: int, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.status = status


class InboundTarget(NamedTuple):
    """Where the bytes of an accepted tunnel stream go.

    ``ip`` is always the address the tunnel was accepted on. ``service`` is the one the connection is counted
    for. ``proxy_destination`` is set when the application expects a PROXY protocol header: the destination
    (ip, port) that the header must name.
    """

    ip: str
    port: int
    service: Service | None = None
    proxy_destination: tuple[str, int] | None = None


def decide_inbound(
    snapshot: Snapshot,
    local: Workload,
    local_ip: str,
    authority: str,
    *,
    network: str = "",
    forwarded_host: str | None = None,
) -> InboundTarget:
    """Check and resolve the authority of a CONNECT request to ``local``, accepted on ``local_ip``.

    ``forwarded_host`` is the service that the peer says it meant; it counts only among the workload's own
    services. Raises :class:`InboundRefused` with the code ``bad_authority`` or ``ip_mismatch`` (400),
    ``no_hostname``, ``no_port_for_services``, ``no_ip_for_service`` or ``self_call`` (503).
    """
    try:
        target = parse_host_port(authority)
    except AddressError as error:
        raise InboundRefused(
            400, "bad_authority", str(error), hint="the authority must be HOST:PORT"
        ) from error
    if target.is_ip:
        _check_address(snapshot, local, local_ip, target.host, network)
        service, port = None, target.port
        proxy_destination: tuple[str, int] | None = (target.host, target.port)
    else:
        service, port, proxy_destination = _by_hostname(snapshot, local, target, network)
    if port in OWN_PORTS:
        raise InboundRefused(503, "self_call", f"port {port} belongs to the proxy itself")
    tunnel = local.application_tunnel
    expects_proxy = tunnel is not None and tunnel.protocol is AppTunnelProtocol.PROXY
    if expects_proxy and proxy_destination is None:
        raise InboundRefused(
            503,
            "no_ip_for_service",
            f"{target.host} has no virtual address that a PROXY protocol header could name",
        )
    return InboundTarget(
        local_ip,
        tunnel.port if tunnel is not None and tunnel.port else port,
        service or _attributed(snapshot, local, port, forwarded_host),
        proxy_destination if expects_proxy else None,
    )


def _check_address(snapshot: Snapshot, local: Workload, local_ip: str, ip: str, network: str) -> None:
    """Only the pod's own address may be asked for, or one for which the pod is the waypoint."""
    if ip == local_ip or local.application_tunnel is not None:
        return
    workload = snapshot.workload_by_address(network, ip)
    service = None if workload is not None else snapshot.service_by_vip(network, ip, None)
    if workload is not None:
        served = is_gateway_instance(snapshot, workload.waypoint, local)
    else:
        served = service is not None and is_waypoint_of(snapshot, service, local)
    if not served:
        raise InboundRefused(
            400,
            "ip_mismatch",
            f"ip mismatch: {local_ip} != {ip}",
            hint="a tunnel to a pod may only ask for that pod",
        )


def _by_hostname(
    snapshot: Snapshot, local: Workload, target: HostPort, network: str
) -> tuple[Service, int, tuple[str, int] | None]:
    service = snapshot.service_by_hostname(target.host, local.namespace)
    if service is None:
        raise InboundRefused(503, "no_hostname", f"no service is named {target.host!r}")
    declared = service.ports.get(target.port)
    port = local.services.get(service.key, {}).get(target.port) or (declared.target_port if declared else 0)
    if not port:
        raise InboundRefused(
            503,
            "no_port_for_services",
            f"{target.host} has no port {target.port} on {local.namespace}/{local.name}",
        )
    ip = _preferred_vip(service, network)
    return service, port, (ip, target.port) if ip is not None else None


def _preferred_vip(service: Service, network: str) -> str | None:
    """The proxy's own network before others, IPv4 before IPv6."""
    single = [vip for vip in service.vips if vip.cidr is None]
    return min(single, key=lambda vip: (vip.network != network, ":" in vip.ip)).ip if single else None


def _attributed(snapshot: Snapshot, local: Workload, port: int, forwarded_host: str | None) -> Service | None:
    """The service of the workload that a connection counts for."""
    serving: NamespacedName | None = None
    for key, ports in local.services.items():
        if forwarded_host is not None and key[1] == forwarded_host:
            return snapshot.services.get(key)
        if serving is None and port in ports.values():
            serving = key
    return snapshot.services.get(serving) if serving is not None else None
