"""Virtual addresses for services that have none, so that a connection to one of their names says which one is meant.

Nobody hands these addresses out: every proxy and waypoint computes them from the same documents and comes to the same
result, in whatever order it read them. Source: Istio's automatic allocation for ServiceEntries, which hashes the key
of the service into the reserved network 240.240.0.0/16; the IPv6 address carries the IPv4 one in its last 32 bits.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from ztun.mesh.document import Document, Problem
from ztun.mesh.model import IpFamilies, NamespacedName, Service, Vip
from ztun.resources.schema import AUTO_ALLOCATE, Metadata

IPV4_NETWORK = ipaddress.ip_network(
    "240.240.0.0/16"
)  # class E: routable nowhere, so nobody else answers there
IPV6_NETWORK = ipaddress.ip_network("2001:2::/64")  # of the block for benchmarks, RFC 5180
SLOTS = 65_011  # the largest prime below 256 * 254: any step length visits every slot


@dataclass(frozen=True, slots=True)
class Unaddressed:
    """A service without an address of its own: the document to complain about, and the addresses that it had.

    ``recorded`` comes from ``status.addresses`` of a ServiceEntry, where istiod writes what it allocated.
    """

    document: Document
    recorded: tuple[str, ...] = ()


def may_allocate(metadata: Metadata) -> bool:
    """Whether the object does not opt out (``networking.istio.io/enable-autoallocate-ip: "false"``)."""
    return metadata.label(AUTO_ALLOCATE).lower() != "false"


def allocate(
    services: Mapping[NamespacedName, Service],
    unaddressed: Mapping[NamespacedName, Unaddressed],
    in_use: Collection[str],
    network: str,
    *,
    slots: int = SLOTS,
) -> tuple[dict[NamespacedName, Service], list[Problem]]:
    """The services of ``unaddressed``, each with an IPv4 and an IPv6 address on ``network``.

    1. Addresses that others have (``in_use``) or that istiod recorded are not given to anybody else.
    2. The rest take their turn by age, then by name. Each tries the slots that the hash of its name leads to, one
       after the other, and takes the first free one: a service that comes or goes moves only those that collide with
       it, and an older one never moves for a younger.
    3. Where all ``slots`` are taken a service stays without address, which is reported.
    """
    given: dict[NamespacedName, Service] = {}
    taken = {*in_use, *(ip for one in unaddressed.values() for ip in one.recorded)}
    waiting: list[Service] = []
    for key, one in unaddressed.items():
        service = services[key]
        if one.recorded:
            given[key] = replace(service, vips=tuple(Vip(network, ip) for ip in one.recorded))
        else:
            waiting.append(service)
    waiting.sort(key=lambda service: (not service.created, service.created, service.key))
    problems: list[Problem] = []
    room = slots
    for service in waiting:
        pair = _free_slot(service, taken, slots) if room else None
        if pair is None:
            room = 0
            problems.append(_exhausted(unaddressed[service.key].document))
            continue
        taken.update(pair)
        families = {IpFamilies.IPV4_ONLY: pair[:1], IpFamilies.IPV6_ONLY: pair[1:]}
        addresses = families.get(service.ip_families, pair)
        given[service.key] = replace(service, vips=tuple(Vip(network, ip) for ip in addresses))
    return given, problems


def _free_slot(service: Service, taken: set[str], slots: int) -> tuple[str, str] | None:
    slot, step = _sequence(service.key, slots)
    for _ in range(slots):
        pair = _addresses(slot)
        if taken.isdisjoint(pair):
            return pair
        slot = (slot + step) % slots
    return None


@lru_cache(maxsize=16_384)  # the same services come with every reload
def _sequence(key: NamespacedName, slots: int) -> tuple[int, int]:
    """The first slot that a service tries, and how far the next one is."""
    digest = hashlib.sha256("/".join(key).encode()).digest()
    first = int.from_bytes(digest[:8], "big") % slots
    return first, 1 + int.from_bytes(digest[8:16], "big") % (slots - 1) if slots > 1 else 0


@lru_cache(maxsize=16_384)
def _addresses(slot: int) -> tuple[str, str]:
    """``.0`` and ``.255`` are left out: some stacks still take them for a network and its broadcast address."""
    third, fourth = divmod(slot, 254)
    number = int(IPV4_NETWORK.network_address) + third * 256 + fourth + 1
    return (
        str(ipaddress.IPv4Address(number)),
        str(ipaddress.IPv6Address(int(IPV6_NETWORK.network_address) + number)),
    )


def _exhausted(document: Document) -> Problem:
    return document.problem(
        ("metadata", "name"),
        f"no address is left for it in {IPV4_NETWORK}",
        hint="give it addresses of its own, or opt services out that need none",
        code="SERVICE",
        severity="warning",
    )
