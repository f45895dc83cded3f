"""Which addresses the nodes, pods and services of a lab get."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ztun.errors import ConfigError

FIRST_HOST = 10  # below it a network keeps room for gateways and the nodes themselves
SERVICE_NETWORK = ipaddress.IPv4Network("192.168.58.0/24")  # inside the CIDR that the examples route by

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The address of each node, the network its pods are on, and the network of the services' virtual IPs.

    With ``pods6`` and ``services6`` pods and services have an address of either family, IPv4 first.
    """

    nodes: Mapping[str, str]
    pods: Mapping[str, ipaddress.IPv4Network]
    services: ipaddress.IPv4Network = SERVICE_NETWORK
    pods6: Mapping[str, ipaddress.IPv6Network] = field(default_factory=dict)
    services6: ipaddress.IPv6Network | None = None
    netns: str = ""
    """What the names of the pods' network namespaces begin with; empty where pods are no such thing."""


def hosts(network: Network) -> Iterator[str]:
    """Addresses of a network from the tenth on; :class:`ConfigError` when there are no more."""
    for offset in range(FIRST_HOST, network.num_addresses - 1):
        yield str(network[offset])
    raise ConfigError("lab_full", f"no address is left in {network}", hint="use fewer pods or services")
