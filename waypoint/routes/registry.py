"""Services as a router looks them up: by dialled address and port, and by destination host."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from waypoint.routes.model import NEWEST
from ztun.mesh.model import IpFamilies, IpNetwork, Service, Workload
from ztun.mesh.snapshot import Snapshot, is_visible
from ztun.routing import RouteEndpoint

WILDCARD_ADDRESSES = frozenset({"0.0.0.0", "::"})
HTTP_PROTOCOLS = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "GRPCWEB", "HTTP_PROXY"})
TLS_PROTOCOLS = frozenset({"TLS", "HTTPS"})


def protocol_kind(protocol: str) -> str:
    """``http``, ``tls``, ``udp`` or ``tcp``: which section of a VirtualService a port uses."""
    if protocol in HTTP_PROTOCOLS:
        return "http"
    if protocol in TLS_PROTOCOLS:
        return "tls"
    return "udp" if protocol == "UDP" else "tcp"


def by_age(service: Service) -> tuple[str, str, str]:
    """Sort key: oldest first, then name, then namespace."""
    return (service.created or NEWEST, service.hostname, service.namespace)


@dataclass(frozen=True, slots=True)
class Listening:
    """The services behind one dialled address and port; ``services[0]`` is the oldest and owns it.

    ``shared`` lists the services whose address is a network: they share one listener per port. ``pod`` is the
    endpoint when the address is that of a pod of a headless service.
    """

    services: tuple[Service, ...]
    shared: tuple[tuple[Service, tuple[IpNetwork, ...]], ...] = ()
    pod: Workload | None = None


class Registry:
    """The services of one snapshot, indexed. Immutable once made."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._vips: dict[str, list[Service]] = {}
        self._networks: dict[int, list[tuple[Service, tuple[IpNetwork, ...]]]] = {}
        self._pods: dict[str, list[tuple[Service, Workload]]] = {}
        for service in sorted(snapshot.services.values(), key=by_age):
            self._add(service)

    def _add(self, service: Service) -> None:
        networks: list[IpNetwork] = []
        for vip in service.vips:
            if vip.cidr is not None and vip.cidr.prefixlen < vip.cidr.max_prefixlen:
                networks.append(vip.cidr)
            elif vip.ip in WILDCARD_ADDRESSES:
                networks.append(ipaddress.ip_network(f"{vip.ip}/0"))
            else:
                self._vips.setdefault(vip.ip, []).append(service)
        if networks:
            for port in service.ports:
                self._networks.setdefault(port, []).append((service, tuple(networks)))
        if service.headless:
            for endpoint in self.snapshot.endpoints(service.key):
                for ip in endpoint.workload.addresses:
                    self._pods.setdefault(ip, []).append((service, endpoint.workload))

    def listening(self, ip: str, port: int, namespace: str | None, *, host: str = "") -> Listening | None:
        """Who owns an address and port, as seen from ``namespace``; ``None`` when nobody does.

        Without a namespace the mesh itself asks, and sees everything. With ``host`` the service is known by name.
        """
        if host:
            named = self.by_host(host, namespace)
            return Listening((named,)) if named is not None and _serves(named, port) else None
        owners = tuple(
            service
            for service in self._vips.get(ip, ())
            if _serves(service, port) and is_visible(service, namespace)
        )
        if owners:
            return Listening(owners)
        for service, workload in self._pods.get(ip, ()):
            if _serves(service, port) and is_visible(service, namespace):
                return Listening((service,), pod=workload)
        shared = tuple(
            entry
            for entry in self._networks.get(port, ())
            if _serves(entry[0], port) and is_visible(entry[0], namespace)
        )
        return Listening(tuple(service for service, _ in shared), shared) if shared else None

    def by_host(self, host: str, namespace: str | None) -> Service | None:
        """The service called ``host`` that ``namespace`` sees: its own first, then the oldest."""
        found = [
            service
            for service in self.snapshot.services_with_hostname(host)
            if is_visible(service, namespace)
        ]
        if not found:
            return None
        return min(found, key=lambda service: (service.namespace != namespace, by_age(service)))

    def endpoints(
        self, service: Service, port: int, labels: Mapping[str, str] | None = None
    ) -> tuple[RouteEndpoint, ...]:
        """The ready endpoints of a service port that carry all of ``labels``."""
        found = []
        for endpoint in self.snapshot.endpoints(service.key):
            workload = endpoint.workload
            target = endpoint.ports.get(port, 0)
            if not target or not workload.addresses:
                continue
            if labels and any(workload.labels.get(key) != value for key, value in labels.items()):
                continue
            ip = _address(workload, service.ip_families)
            if ip:
                found.append(RouteEndpoint(workload, ip, target))
        return tuple(found)

    def hostnames(self) -> tuple[str, ...]:
        """All hostnames, for suggestions."""
        return tuple(sorted({service.hostname for service in self.snapshot.services.values()}))


def _serves(service: Service, port: int) -> bool:
    declared = service.ports.get(port)
    return declared is not None and protocol_kind(declared.protocol) != "udp"


def _address(workload: Workload, families: IpFamilies) -> str:
    if families is IpFamilies.IPV4_ONLY:
        return next((ip for ip in workload.addresses if ":" not in ip), "")
    if families is IpFamilies.IPV6_ONLY:
        return next((ip for ip in workload.addresses if ":" in ip), "")
    return workload.addresses[0]
