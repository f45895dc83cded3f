"""A mesh to ask about: two namespaces, two networks, every kind of name."""

from __future__ import annotations

import ipaddress
from types import MappingProxyType
from typing import Any

from ztun.mesh.model import Health, IpFamilies, LoadBalancing, Service, ServicePort, Vip, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot

HOME, AWAY = "home-net", "away-net"
CLIENT = Workload(
    "client",
    "client-1",
    "app",
    ("10.0.0.1",),
    network=HOME,
    canonical_name="client",
    canonical_revision="v1",
)
PORTS = MappingProxyType({80: ServicePort(80, 8080)})


def kube(name: str, namespace: str, *vips: str, network: str = HOME, **rest: Any) -> Service:
    """A Kubernetes Service."""
    host = f"{name}.{namespace}.svc.cluster.local"
    addresses = tuple(Vip(network, ip) for ip in vips)
    return Service(name, namespace, host, addresses, PORTS, canonical=True, **rest)


def external(host: str, namespace: str, *vips: str | Vip, **rest: Any) -> Service:
    """A host of a ServiceEntry."""
    addresses = tuple(one if isinstance(one, Vip) else Vip(HOME, one) for one in vips)
    return Service(host, namespace, host, addresses, PORTS, **rest)


def alias(name: str, target: str) -> Service:
    """An ExternalName Service."""
    return kube(name, "app", alias_of=target)


def pod(name: str, service: Service, *ips: str, **rest: Any) -> Workload:
    """An endpoint of a service."""
    values: dict[str, Any] = {"network": HOME} | rest
    services = MappingProxyType({service.key: MappingProxyType({80: 8080})})
    return Workload(f"uid-{name}", name, service.namespace, ips, services=services, **values)


HEADLESS = kube("db", "app", headless=True)
HEADLESS_V6 = kube("db6", "app", headless=True, ip_families=IpFamilies.IPV6_ONLY)
HEADLESS_EMPTY = kube("db0", "app", headless=True)
HEADLESS_ALL = kube("dball", "app", headless=True, load_balancing=LoadBalancing(allow_unhealthy=True))

SERVICES = (
    kube("web", "app", "10.96.0.1"),
    kube("web", "other", "10.96.0.2"),
    kube("shop", "other", "10.96.0.3"),
    kube("dual", "app", "10.96.0.4", "fd00::4"),
    kube("six", "app", "fd00::5"),
    kube("far", "app", "10.96.0.6", network=AWAY),
    Service(
        "both", "app", "both.app.svc.cluster.local", (Vip(HOME, "10.96.0.7"), Vip(AWAY, "10.97.0.7")), PORTS
    ),
    kube("novip", "app"),
    kube("secret", "other", "10.96.0.8", visible_only_in_namespace=True, export_to=("other",)),
    kube("shared", "other", "10.96.0.9", export_to=("app",)),
    kube("four", "app", "10.96.0.10", ip_families=IpFamilies.IPV4_ONLY),
    Service("remote", "other", "remote.other.svc.cluster.remote", (Vip(HOME, "10.96.1.1"),), PORTS),
    HEADLESS,
    HEADLESS_V6,
    HEADLESS_EMPTY,
    HEADLESS_ALL,
    alias("near", "shop.other.svc.cluster.local"),
    alias("chain", "near.app.svc.cluster.local"),
    alias("pods", "db.app.svc.cluster.local"),
    alias("cdn", "cdn.example.net"),
    alias("store", "store.c9ak.eu-west-1.rds.example.net"),
    alias("deep", "a.b.c.d.e.example.com"),
    alias("short", "web"),
    alias("round", "about.app.svc.cluster.local"),
    alias("about", "round.app.svc.cluster.local"),
    external("www.example.com", "app", "240.240.0.1"),
    external("single", "app", "240.240.0.2"),
    external("a.b.c.d.e.example.com", "app", "240.240.0.3"),
    external("net.example.com", "app", Vip(HOME, "10.9.0.0", ipaddress.ip_network("10.9.0.0/16"))),
    external("none.example.com", "app"),
    external("*.wild.example", "app", "240.240.1.1"),
    external("*.deep.wild.example", "app", "240.240.1.2"),
    external("exact.wild.example", "app", "240.240.1.3"),
    external("*.svc.mesh.example", "app", "240.240.1.4"),
    external("rank.example", "other", "240.240.2.1"),
    external("rank.example", "app", "240.240.2.2"),
    external("rank.example", "preferred", "240.240.2.3"),
    external("choice.example", "other", "240.240.3.1"),
    external("choice.example", "preferred", "240.240.3.2"),
    external("canonical.example", "preferred", "240.240.4.1"),
    external("canonical.example", "other", "240.240.4.2", canonical=True),
    external("own.example", "app", "240.240.5.1"),
    external("own.example", "other", "240.240.5.2", canonical=True),
    external("hidden.example", "app", "240.240.6.1", export_to=("nobody",)),
    external("hidden.example", "other", "240.240.6.2"),
    external("half.example", "app"),
    external("half.example", "other", "240.240.7.1"),
)
WORKLOADS = (
    CLIENT,
    pod("db-0", HEADLESS, "10.1.0.1", "fd01::1"),
    pod("db-1", HEADLESS, "10.1.0.2", "10.1.0.22", "fd01::2"),
    pod("db-sick", HEADLESS, "10.1.0.3", health=Health.UNHEALTHY),
    pod("db-far", HEADLESS, "10.1.0.4", network=AWAY),
    pod("six-0", HEADLESS_V6, "10.1.0.5", "fd01::5"),
    pod("all-sick", HEADLESS_ALL, "10.1.0.6", health=Health.UNHEALTHY),
    pod("web-0", SERVICES[0], "10.1.0.7"),
)


def snapshot(*more: Service, cluster_domain: str = "cluster.local", generation: int = 0) -> Snapshot:
    """The mesh."""
    return build_snapshot(
        workloads=WORKLOADS,
        services=(*SERVICES, *more),
        policies=(),
        cluster_domain=cluster_domain,
        generation=generation,
    )
