"""The values a mesh is made of: workloads, services and authorization policies.

Field names and meanings follow Istio's ``istio.workload.Workload``, ``istio.workload.Service`` and
``istio.security.Authorization`` messages. IP addresses are canonical text (``"10.0.0.1"``, ``"2001:db8::1"``;
an IPv4-mapped IPv6 address is written as IPv4): a dictionary key on the path of every connection, cheaper
than an object.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId

IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
NamespacedName: TypeAlias = tuple[str, str]
"""(namespace, name or hostname)."""

HBONE_PORT = 15008
_EMPTY: Mapping[str, str] = MappingProxyType({})


@lru_cache(maxsize=16_384)  # the same few addresses come with every connection, and parsing one takes 2 us
def canonical_ip(text: str) -> str:
    """The one spelling of an IP address used as a key; raises ``ValueError`` when it is not an address.

    An IPv6 zone (``fe80::1%eth0``) is refused: it has no meaning outside the machine that wrote it.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text!r} has an IPv6 zone")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def join_host_port(host: str, port: int) -> str:
    """``host:port`` with an IPv6 host in brackets, as ``:authority`` and logs want it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TunnelProtocol(Enum):
    """How a workload takes connections: inside an HBONE tunnel or as plain TCP."""

    NONE = "TCP"
    HBONE = "HBONE"


class WorkloadType(Enum):
    """What owns a pod; part of the baggage key (``k8s.<type>.name``)."""

    DEPLOYMENT = "deployment"
    CRONJOB = "cronjob"
    POD = "pod"
    JOB = "job"


class Health(Enum):
    """Whether an endpoint is ready to take connections."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class AppTunnelProtocol(Enum):
    """What a workload that takes redirected connections expects in front of the bytes."""

    NONE = "NONE"
    PROXY = "PROXY"


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """A workload behind which another proxy listens ("sandwich"); ``port`` 0 keeps the target port."""

    protocol: AppTunnelProtocol
    port: int = 0


@dataclass(frozen=True, slots=True)
class Locality:
    """Where a workload runs; empty strings are unknown."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """An IP address on a named network (``""`` is the default network)."""

    network: str
    ip: str


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """A waypoint or network gateway: by (namespace, hostname) or by address, and its HBONE port."""

    destination: NamespacedName | NetworkAddress
    hbone_mtls_port: int = HBONE_PORT


@dataclass(frozen=True, slots=True)
class WeightedWaypoint:
    """One of several waypoints that share the new connections to a service, in proportion to their weights."""

    gateway: GatewayAddress
    weight: int


@lru_cache(maxsize=16_384)  # checking the grammar takes 4 us, and several parts ask for it on each connection
def _identity(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    return SpiffeId(trust_domain, namespace, service_account)


@dataclass(frozen=True, slots=True)
class Workload:
    """One pod or WorkloadEntry. ``uid`` is unique, e.g. ``Kubernetes//Pod/default/client-1``.

    ``services`` maps (namespace, hostname) of each service this is an endpoint of to {service port: target
    port}. ``authorization_policies`` lists the selector-scoped policies that apply, as ``namespace/name``.
    """

    uid: str
    name: str
    namespace: str
    addresses: tuple[str, ...] = ()
    service_account: str = "default"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    network: str = ""
    node: str = ""
    tunnel_protocol: TunnelProtocol = TunnelProtocol.NONE
    labels: Mapping[str, str] = field(default_factory=lambda: _EMPTY, hash=False)
    services: Mapping[NamespacedName, Mapping[int, int]] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    authorization_policies: tuple[str, ...] = ()
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    application_tunnel: ApplicationTunnel | None = None
    native_tunnel: bool = False
    hostname: str = ""
    host_network: bool = False
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_name: str = ""
    workload_type: WorkloadType = WorkloadType.POD
    cluster_id: str = "Kubernetes"
    locality: Locality = Locality()
    health: Health = Health.HEALTHY
    capacity: int = 1
    sidecar: bool = False
    """The pod runs in sidecar mode: its own proxy, not the node's, takes its traffic."""

    @property
    def identity(self) -> SpiffeId:
        """The SPIFFE identity its certificate carries."""
        return _identity(self.trust_domain, self.namespace, self.service_account)


class Scope(Enum):
    """A property of a workload that locality-aware balancing compares with the client's."""

    REGION = "REGION"
    ZONE = "ZONE"
    SUBZONE = "SUBZONE"
    NODE = "NODE"
    CLUSTER = "CLUSTER"
    NETWORK = "NETWORK"


class BalanceMode(Enum):
    """How strictly ``LoadBalancing.preference`` is followed."""

    UNSPECIFIED = "UNSPECIFIED"
    STRICT = "STRICT"
    FAILOVER = "FAILOVER"
    PASSTHROUGH = "PASSTHROUGH"


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    """Locality preference of a service, most important scope first, and whether unready endpoints count."""

    mode: BalanceMode = BalanceMode.UNSPECIFIED
    preference: tuple[Scope, ...] = ()
    allow_unhealthy: bool = False


class IpFamilies(Enum):
    """Which families the endpoints of a service are dialled on."""

    AUTOMATIC = "AUTOMATIC"
    IPV4_ONLY = "IPV4_ONLY"
    IPV6_ONLY = "IPV6_ONLY"
    DUAL = "DUAL"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service. ``target_port`` 0 means that each endpoint names its own (a named target port)."""

    number: int
    target_port: int = 0
    name: str = ""
    protocol: str = ""
    """Declared protocol in upper case (``TCP``, ``TLS``, ``HTTP`` ...), empty when undeclared."""


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual address of a service; ``cidr`` is set when it is a whole network."""

    network: str
    ip: str
    cidr: IpNetwork | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A service or a host of a ServiceEntry. Its key is (namespace, hostname)."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[Vip, ...] = ()
    ports: Mapping[int, ServicePort] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    subject_alt_names: tuple[SpiffeId, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    """The waypoint and a canary of it; empty without one (Istio's ``weighted_waypoints``)."""
    load_balancing: LoadBalancing = LoadBalancing()
    ip_families: IpFamilies = IpFamilies.AUTOMATIC
    canonical: bool = False
    visible_only_in_namespace: bool = False
    export_to: tuple[str, ...] = ("*",)
    headless: bool = False
    alias_of: str = ""
    """The name that it is another name of (ExternalName), in lower case; empty for every other service."""
    created: str = ""
    """creationTimestamp in RFC 3339 UTC, empty when the document has none."""

    @property
    def key(self) -> NamespacedName:
        """(namespace, hostname)."""
        return (self.namespace, self.hostname)

    @property
    def waypoints(self) -> tuple[GatewayAddress, ...]:
        """Every waypoint that may stand in front of it, the canary whatever its weight."""
        own = (self.waypoint,) if self.waypoint is not None else ()
        return tuple(dict.fromkeys((*own, *(share.gateway for share in self.weighted_waypoints))))


class PolicyScope(Enum):
    """Which workloads a policy covers."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class PolicyAction(Enum):
    """What a match means. DENY is evaluated before ALLOW."""

    ALLOW = "Allow"
    DENY = "Deny"


class StringMatchKind(Enum):
    """The four comparisons of Istio's StringMatch; user text is never compiled into a pattern."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """One comparison; ``value`` is empty for PRESENCE."""

    kind: StringMatchKind
    value: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """AND over attribute types. Each type: (no positive values or any hits) and (no negative value hits)."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[NamespacedName, ...] = ()
    not_service_accounts: tuple[NamespacedName, ...] = ()
    source_ips: tuple[IpNetwork, ...] = ()
    not_source_ips: tuple[IpNetwork, ...] = ()
    destination_ips: tuple[IpNetwork, ...] = ()
    not_destination_ips: tuple[IpNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


Clause: TypeAlias = tuple[Match, ...]
"""OR of matches; an empty clause is true, and an entirely empty Match inside one counts as false."""
Rule: TypeAlias = tuple[Clause, ...]
"""AND of clauses; a rule without clauses matches everything."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """One policy in evaluated form; rules are ORed, and a policy without rules never matches."""

    name: str
    namespace: str
    scope: PolicyScope
    action: PolicyAction
    rules: tuple[Rule, ...]
    dry_run: bool = False
    target_refs: tuple[tuple[str, str, str], ...] = ()
    """(group, kind, name) of the objects it is attached to in its namespace; only a waypoint enforces it."""

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"
