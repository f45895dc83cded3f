"""Which addresses the nodes, pods and services of a lab get."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ztun.errors import ConfigError

FIRST_HOST = 10  # below it a network keeps room for gateways and the nodes themselves
SERVICE_NETWORK = ipaddress.IPv4Network("192.168.58.0/24")  # inside the CIDR that the examples route by


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The address of each node, the network its pods are on, and the network of the services' virtual IPs."""

    nodes: Mapping[str, str]
    pods: Mapping[str, ipaddress.IPv4Network]
    services: ipaddress.IPv4Network = SERVICE_NETWORK


def hosts(network: ipaddress.IPv4Network) -> Iterator[str]:
    """Addresses of a network from the tenth on; :class:`ConfigError` when there are no more."""
    for offset in range(FIRST_HOST, network.num_addresses - 1):
        yield str(network[offset])
    raise ConfigError("lab_full", f"no address is left in {network}", hint="use fewer pods or services")
