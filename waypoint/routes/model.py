"""Routing resources as values: names expanded, networks parsed, nothing left to interpret at connection time."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from waypoint.routes.traffic import PolicySpec
from ztun.mesh.document import Document
from ztun.mesh.model import IpNetwork

AgeKey: TypeAlias = tuple[str, int, str, str]
"""Oldest first: creation time, load order of documents without one, name, namespace."""

NEWEST = "~"
"""Sorts after every timestamp: a document without one is younger than all that have one."""


def age_key(document: Document) -> AgeKey:
    """Sort key by age; documents without creationTimestamp keep the order in which they were loaded."""
    order = 0 if document.created else document.order
    return (document.created or NEWEST, order, document.name, document.namespace)


def name_age_key(document: Document) -> AgeKey:
    """Sort key by age, then name, then namespace, whatever the order of loading (Istio's order of Gateways)."""
    return (document.created or NEWEST, 0, document.name, document.namespace)


@dataclass(frozen=True, slots=True)
class Subnet:
    """One element of ``destinationSubnets``: the masked network and whether host bits were written."""

    network: IpNetwork
    text: str
    host_bits: bool


def parse_subnet(text: str) -> Subnet | None:
    """An address or CIDR; ``None`` when it is neither. A netmask or a zone is not part of a CIDR (RFC 4632)."""
    _, slash, length = text.partition("/")
    if (slash and not (length.isascii() and length.isdecimal())) or "%" in text:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return None
    network = interface.network
    return Subnet(network, text, interface.ip != network.network_address)


@dataclass(frozen=True, slots=True)
class Block:
    """One match block. ``uses_subnets`` stays true when every element was invalid: the block must not widen.

    ``attached_port`` is the port of a Gateway API parentRef: attachment, not a user's match.
    """

    index: int
    subnets: tuple[Subnet, ...] = ()
    uses_subnets: bool = False
    port: int = 0
    source_labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()
    sni_hosts: tuple[str, ...] = ()
    attached_port: int = 0
    invalid: str = ""
    """Why the block can never match, e.g. because it is null; empty for a usable block."""


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """One weighted destination of a rule. ``permitted`` is false when a ReferenceGrant is missing."""

    host: str
    port: int | None = None
    subset: str = ""
    weight: int | None = None
    permitted: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class L4Rule:
    """One entry of ``tcp`` or ``tls``. Without blocks it matches everything.

    ``explicit_weights`` is the Gateway API reading: an absent weight was already made 1, and all zero refuses.
    """

    section: str
    index: int
    blocks: tuple[Block, ...]
    targets: tuple[RouteTarget, ...]
    explicit_weights: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class VirtualService:
    """Rules for hosts, with every name expanded. ``http_rules`` is only a count: layer 4 does not read them."""

    namespace: str
    name: str
    hosts: tuple[str, ...]
    gateways: tuple[str, ...]
    export_to: tuple[str, ...]
    tcp: tuple[L4Rule, ...]
    tls: tuple[L4Rule, ...]
    http_rules: int
    age: AgeKey
    document: Document
    kind: str = "VirtualService"

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        """``VirtualService namespace/name``; a converted route keeps its own kind."""
        return f"{self.kind} {self.key}"


@dataclass(frozen=True, slots=True)
class Subset:
    """A named part of a service's endpoints: every label must be on the endpoint; no labels, every endpoint."""

    name: str
    labels: Mapping[str, str]
    traffic: PolicySpec | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DestinationRule:
    """Subsets and traffic policy for a host. ``selector`` None applies to every client."""

    namespace: str
    name: str
    host: str
    export_to: tuple[str, ...]
    selector: Mapping[str, str] | None
    subsets: tuple[Subset, ...]
    traffic: PolicySpec | None
    age: AgeKey
    document: Document

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        """``DestinationRule namespace/name``."""
        return f"DestinationRule {self.key}"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS settings of a gateway server; file names, credential name, hashes and versions as written."""

    mode: str = ""
    credential_name: str = ""
    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    subject_alt_names: tuple[str, ...] = ()
    client_keys: tuple[str, ...] = ()
    """Base64 of the SHA-256 of the public keys of clients."""
    client_hashes: tuple[str, ...] = ()
    """Hexadecimal SHA-256 of the certificates of clients."""
    min_version: str = ""
    max_version: str = ""
    cipher_suites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayServer:
    """One server of a Gateway. ``hosts`` are (namespace part, host): ``*`` any namespace, ``.`` the Gateway's."""

    index: int
    port: int
    protocol: str
    name: str
    bind: str
    hosts: tuple[tuple[str, str], ...]
    tls: ServerTls | None


@dataclass(frozen=True, slots=True, eq=False)
class GatewayConfig:
    """Listeners for the gateway proxies whose labels contain ``selector``.

    ``same_namespace`` restricts to proxies of the object's namespace (Gateway API). ``kind`` is for messages.
    """

    namespace: str
    name: str
    selector: Mapping[str, str]
    servers: tuple[GatewayServer, ...]
    age: AgeKey
    document: Document
    same_namespace: bool = False

    @property
    def key(self) -> str:
        """``namespace/name``, the form that ``gateways`` lists hold after expansion."""
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        """``Gateway namespace/name``."""
        return f"Gateway {self.key}"


@dataclass(frozen=True, slots=True)
class EffectiveRule:
    """The DestinationRules that apply to one host for one client, merged."""

    sources: tuple[DestinationRule, ...]
    subsets: Mapping[str, Subset]
    traffic: PolicySpec | None

    @property
    def has_policy(self) -> bool:
        """Whether any traffic policy is set, on the host or on a subset."""
        return self.traffic is not None or any(subset.traffic for subset in self.subsets.values())
