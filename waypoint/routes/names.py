"""Host and gateway names: expansion, wildcards, visibility.

Rules are those of Istio's ``ResolveShortnameToFQDN``, ``resolveGatewayName`` and ``host.Name``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from ztun.routing import MESH_GATEWAY

PUBLIC = "*"
PRIVATE = "."


def is_ip(text: str) -> bool:
    """Whether the text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def expand_host(name: str, namespace: str, cluster_domain: str = "cluster.local") -> str:
    """The full form of a host of an object in ``namespace``; a name with a dot, ``*`` and an IP stay as they are."""
    if not name or name == "*" or "." in name or is_ip(name):
        return name.lower()
    return f"{name}.{namespace}.svc.{cluster_domain}".lower()


def expand_gateway(name: str, namespace: str) -> str:
    """``mesh`` or ``namespace/name``; the old dotted form ``name.namespace.svc...`` is understood."""
    if name == MESH_GATEWAY:
        return name
    if "/" in name:
        owner, _, rest = name.partition("/")
        return f"{namespace}/{rest}" if owner == "." else name
    first, dot, rest = name.partition(".")
    if not dot:
        return f"{namespace}/{name}"
    return f"{rest.partition('.')[0]}/{first}"


def host_matches(one: str, other: str) -> bool:
    """Whether some name is covered by both; either side may be a wildcard (``*.foo.com``, ``*foo.com``, ``*``)."""
    if one.startswith("*"):
        if other.startswith("*"):
            return one[1:].endswith(other[1:]) or other[1:].endswith(one[1:])
        return other.endswith(one[1:])
    if other.startswith("*"):
        return one.endswith(other[1:])
    return one == other


def host_subset_of(one: str, other: str) -> bool:
    """Whether every name that ``one`` covers is covered by ``other``."""
    if other.startswith("*"):
        return (one[1:] if one.startswith("*") else one).endswith(other[1:])
    return one == other


def specificity(host: str) -> tuple[int, int]:
    """Sort key: exact names above wildcards, longer wildcards above shorter."""
    return (0, len(host)) if host.startswith("*") else (1, len(host))


def exported_to(export_to: Collection[str], owner_namespace: str, namespace: str) -> bool:
    """Whether an object of ``owner_namespace`` is visible in ``namespace``; an empty list means everywhere."""
    if not export_to or PUBLIC in export_to:
        return True
    return namespace in export_to or (PRIVATE in export_to and namespace == owner_namespace)
