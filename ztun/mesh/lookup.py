"""Where an outbound connection goes: the decision tree of a node proxy, as a pure function."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from certs.spiffe import SpiffeId
from ztun.errors import RouteError
from ztun.mesh.balance import Choice, choose_endpoint
from ztun.mesh.gateway import describe_gateway, is_gateway_instance, resolve_gateway, resolve_waypoint
from ztun.mesh.model import (
    HBONE_PORT,
    BalanceMode,
    GatewayAddress,
    IpFamilies,
    Service,
    TunnelProtocol,
    Workload,
    canonical_ip,
    join_host_port,
)
from ztun.mesh.names import candidate_names
from ztun.mesh.snapshot import Snapshot

OWN_PORTS = frozenset({15001, 15006, HBONE_PORT, 15080})
"""The proxy's own listeners: a connection to one of them over loopback would call the proxy itself."""


class RouteKind(Enum):
    """What is done with an outbound connection."""

    PASSTHROUGH = "passthrough"
    """Plain TCP to the original destination, which the mesh does not know."""
    TCP = "tcp"
    """Plain TCP to a known workload that has no tunnel."""
    HBONE = "hbone"
    """A tunnel to the workload itself."""
    WAYPOINT = "waypoint"
    """A tunnel to the waypoint in front of the destination."""


class OutboundRoute(NamedTuple):
    """The next hop of one connection.

    ``address`` is what to dial; its host is an IP address, or a DNS name to resolve when the workload is
    known by name only. ``authority`` is the CONNECT target. ``expected`` lists the identities of which the
    peer must present one. ``destination`` is the workload that is dialled (the waypoint's, if it is one);
    ``service`` is the service that the client dialled.
    """

    kind: RouteKind
    address: tuple[str, int]
    authority: str | None = None
    expected: tuple[SpiffeId, ...] = ()
    destination: Workload | None = None
    service: Service | None = None

    @property
    def hbone_target(self) -> str | None:
        """The target inside the tunnel, as the access log shows it; None without a tunnel."""
        return self.authority


def decide_outbound(
    snapshot: Snapshot,
    source: Workload,
    host: str,
    port: int,
    *,
    rng: random.Random,
    network: str = "",
    source_ip: str | None = None,
    excluded: frozenset[str] = frozenset(),
) -> OutboundRoute:
    """Decide where a connection of a local workload goes.

    ``host`` is the original destination: an IP address, or a hostname where the client gave one. ``network``
    is the proxy's own network. ``source_ip`` is the client's address, if it is known. ``excluded`` holds uids
    of workloads that were tried and failed.

    1. A service with a waypoint: the waypoint or its canary, with the original destination as authority.
    2. A service: one of its endpoints. A workload with a waypoint that was dialled by its address: the
    waypoint.
    3. A workload: a tunnel to it if it has one, otherwise plain TCP.
    4. An address the mesh does not know: plain TCP to it.

    Traffic that comes from the waypoint itself is not sent to it again, and a workload in sidecar mode, whose
    own proxy has evaluated the rules, passes waypoints by.

    Raises :class:`RouteError`: ``self_call``, ``unknown_hostname``, ``unknown_waypoint``,
    ``no_healthy_upstream``, ``no_valid_destination``, ``unsupported_network``.
    """
    ip, service, workload = find_destination(snapshot, source, host, port, network)
    skip_waypoint = source.sidecar
    if service is not None:
        if service.waypoint is not None and not (
            skip_waypoint or any(_comes_from(snapshot, one, source, source_ip) for one in service.waypoints)
        ):
            authority = join_host_port(ip or _vip(service, network) or service.hostname, port)
            resolved = resolve_waypoint(snapshot, service, source, rng=rng, excluded=excluded)
            return _to_waypoint(service.waypoint, resolved, authority, service, ip, network)
        if service.load_balancing.mode is BalanceMode.PASSTHROUGH and ip is not None:
            return OutboundRoute(RouteKind.PASSTHROUGH, (ip, port), service=service)
        choice = choose_endpoint(snapshot, service, port, source, rng=rng, excluded=excluded)
        if choice is None:
            raise _no_upstream(snapshot, service, port, excluded)
    elif workload is not None:
        if workload.uid in excluded:
            raise RouteError(
                "no_healthy_upstream",
                f"{workload.namespace}/{workload.name} was tried and is the only choice",
            )
        choice = Choice(workload, port)
    else:
        assert ip is not None
        return OutboundRoute(RouteKind.PASSTHROUGH, (ip, port))
    target = choice.workload
    _refuse_other_network(target, network)
    if (
        service is None
        and target.waypoint is not None
        and not (skip_waypoint or _comes_from(snapshot, target.waypoint, source, source_ip))
    ):
        authority = join_host_port(ip or host, port)
        resolved = resolve_gateway(snapshot, target.waypoint, source, rng=rng, excluded=excluded)
        return _to_waypoint(target.waypoint, resolved, authority, None, ip, network)
    return route_to_workload(target, select_address(target, service, ip), choice.port, service)


def route_to_workload(target: Workload, ip: str, port: int, service: Service | None) -> OutboundRoute:
    """The way to ``port`` of a workload at one of its addresses: a tunnel if it has one, else plain TCP."""
    if target.tunnel_protocol is TunnelProtocol.NONE:
        return OutboundRoute(RouteKind.TCP, (ip, port), destination=target, service=service)
    return OutboundRoute(
        RouteKind.HBONE,
        (ip, HBONE_PORT),
        join_host_port(ip, port),
        _identities(service, target),
        target,
        service,
    )


def find_destination(
    snapshot: Snapshot, source: Workload, host: str, port: int, network: str
) -> tuple[str | None, Service | None, Workload | None]:
    """The canonical IP (None for a name) and the service or else the workload it belongs to, as ``source`` sees it.

    Raises :class:`RouteError`: ``self_call``, ``unknown_hostname``.
    """
    try:
        ip = canonical_ip(host)
    except ValueError:
        return _named_destination(snapshot, source, host)
    if port in OWN_PORTS and ipaddress.ip_address(ip).is_loopback:
        raise RouteError("self_call", f"{join_host_port(ip, port)} is a port of the proxy itself")
    workload = snapshot.workload_by_address(network, ip)
    service = None if workload is not None else snapshot.service_by_vip(network, ip, source.namespace)
    return ip, service, workload


def _named_destination(
    snapshot: Snapshot, source: Workload, host: str
) -> tuple[None, Service | None, Workload | None]:
    for name in candidate_names(host, source.namespace, snapshot.cluster_domain):
        service = snapshot.service_by_hostname(name, source.namespace)
        # A wildcard says who owns the name, not where it is.
        if service is not None and not service.hostname.startswith("*"):
            return None, service, None
    raise RouteError(
        "unknown_hostname",
        f"no service of the mesh that {source.namespace} can see is named {host!r}",
        hint="check the spelling, the namespace and exportTo",
    )


def _to_waypoint(
    address: GatewayAddress,
    resolved: tuple[Choice, Service | None] | None,
    authority: str,
    service: Service | None,
    requested_ip: str | None,
    network: str,
) -> OutboundRoute:
    if resolved is None:
        raise RouteError(
            "unknown_waypoint",
            f"the waypoint {describe_gateway(address)} of {authority} is unknown or has no ready instance",
            hint="check the istio.io/use-waypoint label, and that the waypoint's pods run and are ready",
        )
    choice, waypoint_service = resolved
    _refuse_other_network(choice.workload, network)
    # A waypoint may have other address families than the destination, so the requested one is a wish only.
    dial = select_address(choice.workload, waypoint_service, requested_ip)
    return OutboundRoute(
        RouteKind.WAYPOINT,
        (dial, choice.port),
        authority,
        _identities(waypoint_service, choice.workload),
        choice.workload,
        service,
    )


def _comes_from(snapshot: Snapshot, address: GatewayAddress, source: Workload, source_ip: str | None) -> bool:
    """Whether the connection was opened by the waypoint itself."""
    return is_gateway_instance(snapshot, address, source) and (
        source_ip is None or source_ip in source.addresses
    )


def _identities(service: Service | None, workload: Workload) -> tuple[SpiffeId, ...]:
    own = workload.identity
    if service is None or not service.subject_alt_names:
        return (own,)
    return tuple(dict.fromkeys((*service.subject_alt_names, own)))


def _vip(service: Service, network: str) -> str | None:
    return next((vip.ip for vip in service.vips if vip.network == network and vip.cidr is None), None)


def _refuse_other_network(workload: Workload, network: str) -> None:
    if workload.network == network:
        return
    name = f"{workload.namespace}/{workload.name}"
    if workload.network_gateway is None:
        raise RouteError(
            "no_valid_destination",
            f"{name} is on network {workload.network!r}, which has no gateway",
            hint="only workloads of the proxy's own network can be reached directly",
        )
    raise RouteError(
        "unsupported_network",
        f"{name} is on network {workload.network!r}; tunnels through network gateways are not supported",
        hint="give the service an endpoint on the proxy's own network",
    )


def _no_upstream(snapshot: Snapshot, service: Service, port: int, excluded: frozenset[str]) -> RouteError:
    if port not in service.ports:
        declared = ", ".join(str(number) for number in sorted(service.ports)) or "none"
        return RouteError(
            "no_healthy_upstream",
            f"service {service.hostname} has no port {port}",
            hint=f"its ports are: {declared}",
        )
    if not snapshot.endpoints(service.key):
        hint = "check the selector of the service and whether its pods are ready"
    elif excluded:
        hint = "the endpoints that could be chosen were tried and did not answer"
    else:
        hint = "check target ports, weights and locality preference of the service"
    return RouteError(
        "no_healthy_upstream", f"service {service.hostname} has no endpoint for port {port}", hint=hint
    )


def select_address(workload: Workload, service: Service | None, requested_ip: str | None) -> str:
    """Which address of a workload to dial.

    1. The one that was asked for, if it is the workload's. 2. Of those of the families the service allows,
    one of the family asked for, else the first. 3. Its DNS name. Raises :class:`RouteError`
    ``no_valid_destination``.
    """
    if requested_ip is not None and requested_ip in workload.addresses:
        return requested_ip
    allowed = _allowed(workload.addresses, service.ip_families if service else IpFamilies.AUTOMATIC)
    if allowed:
        if requested_ip is not None:
            wants_v6 = ":" in requested_ip
            return next((ip for ip in allowed if (":" in ip) is wants_v6), allowed[0])
        return allowed[0]
    if workload.hostname:
        return workload.hostname
    raise RouteError(
        "no_valid_destination",
        f"{workload.namespace}/{workload.name} has no address of a family that may be used",
        hint="check status.podIPs and the ipFamilies of the service",
    )


def _allowed(addresses: Sequence[str], families: IpFamilies) -> Sequence[str]:
    if families is IpFamilies.IPV4_ONLY:
        return [ip for ip in addresses if ":" not in ip]
    if families is IpFamilies.IPV6_ONLY:
        return [ip for ip in addresses if ":" in ip]
    return addresses
