"""Names: the DNS proxy of a place, and what the proxy itself has to resolve for its pods."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ztun.dns.metrics import DnsMetrics
from ztun.dns.nameservers import ResolvConf
from ztun.dns.proxy import DnsProxy, DnsSurroundings
from ztun.dns.settings import DnsSettings
from ztun.dns.stub import families, resolve_first
from ztun.dns.zone import Family, ZoneOptions, look_up
from ztun.errors import ConfigError, RouteError
from ztun.mesh.address import is_hostname
from ztun.mesh.lookup import find_destination
from ztun.net.listeners import ORDINARY, Listening, bind, cannot_listen
from ztun.net.namespaces import has_ipv6
from ztun.proxy.outbound import wait_for_workload

if TYPE_CHECKING:
    from ztun.config import ProxySettings
    from ztun.mesh.model import Service, Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site
    from ztun.telemetry.metrics import Metrics


def dns_surroundings(
    settings: ProxySettings, snapshot: Callable[[], Snapshot], metrics: Metrics, rng: random.Random
) -> DnsSurroundings:
    """What every DNS proxy of a process shares.

    The search list of resolv.conf is that of the pod only where the pod is the proxy's own; others have the one that
    Kubernetes writes.
    """
    dns = settings.dns or DnsSettings()
    own = settings.inpod is None
    resolv_conf = ResolvConf(dns.resolv_conf, from_pods=not own)
    if settings.dns is not None:
        resolv_conf.nameservers()  # read now: what cannot be used of it is said at the start

    def options() -> ZoneOptions:
        search = resolv_conf.search() if own else None
        return ZoneOptions(search, dns.preferred_namespace, settings.ipv6)

    return DnsSurroundings(snapshot, resolv_conf.nameservers, DnsMetrics(metrics), rng, options)


async def open_dns(
    plane: Plane,
    site: Site,
    settings: DnsSettings,
    find: Callable[[], Workload | None],
    who: str,
    how: Listening = ORDINARY,
) -> None:
    """Serve the queries of the pod that ``find`` gives, in the namespace of ``site``, which closes the proxy.

    Raises :class:`ConfigError` when its addresses cannot be had.
    """
    proxy = DnsProxy(plane.dns, find, lambda: wait_for_workload(plane, find, who), site.upstream)
    with_ipv6 = plane.settings.ipv6 and (
        has_ipv6() if site.namespace is None else site.namespace.run(has_ipv6)
    )
    ips = [ip for ip in settings.ips if with_ipv6 or ":" not in ip]
    bound: list[tuple[int, socket.socket]] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            for ip in ips:
                options, purpose = plane.settings.sockets, f"DNS of {who}"
                bound.append((kind, bind(ip, settings.port, options, purpose=purpose, how=how, kind=kind)))
    except ConfigError:
        for _, sock in bound:
            sock.close()
        raise
    try:
        await proxy.open(
            [sock for kind, sock in bound if kind == socket.SOCK_DGRAM],
            [sock for kind, sock in bound if kind == socket.SOCK_STREAM],
        )
    except OSError as error:
        raise cannot_listen(ips[0], settings.port, f"DNS of {who}", error) from error
    site.dns = proxy


def is_alias(plane: Plane, source: Workload, host: str) -> bool:
    """Whether ``host`` is an ExternalName, so that :func:`resolve_destination` has to say what is meant by it.

    One that has a waypoint goes there by its own name.
    """
    service = _service(plane, source, host) if is_hostname(host) else None
    return service is not None and bool(service.alias_of) and not service.waypoints


async def resolve_destination(
    plane: Plane, site: Site, source: Workload, host: str, port: int, preferred: Family
) -> str:
    """The address that ``host`` has for a pod, as its DNS proxy would give it; an address stays as it is.

    A service of the mesh that has no address keeps its name, and so does an ExternalName that the mesh knows the way
    to: by a waypoint, or as ``port`` of it. What others stand for outside the mesh is asked for there.
    Raises :class:`DnsError`.
    """
    if not is_hostname(host):
        return host
    wanted = families(preferred, ipv6=plane.settings.ipv6)
    outside = host
    for family in wanted:
        known = look_up(plane.snapshot, source, host, family, rng=plane.rng, options=plane.dns.options())
        if known is not None and known.addresses:
            return known.addresses[0]
        if known is not None and known.outside and known.canonical is not None:
            outside = known.canonical
    service = _service(plane, source, host)
    if service is not None and (outside == host or service.waypoints or port in service.ports):
        return host
    return (await resolve_first(site.upstream, outside, wanted, plane.rng))[0]


def _service(plane: Plane, source: Workload, host: str) -> Service | None:
    """The service of the mesh of this name."""
    try:
        return find_destination(plane.snapshot, source, host, 0, plane.settings.network)[1]
    except RouteError:
        return None
