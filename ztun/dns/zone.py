"""What the mesh knows about a name, as one of its clients sees it; pure.

Source: ztunnel's DNS proxy. Beyond it, pods of headless services have names of their own
(``<pod>.<service>.<namespace>.svc.<domain>``), as Kubernetes gives them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ztun.mesh.address import is_hostname
from ztun.mesh.model import IpFamilies, Service, Workload
from ztun.mesh.names import aliases, search_list
from ztun.mesh.snapshot import Snapshot

Family: TypeAlias = Literal[4, 6]

MAX_ADDRESSES = (
    1000  # of one answer: 28 KB of AAAA records; a random selection of more serves the client as well
)

MAX_ALIASES = 8  # ExternalNames that lead to each other; the C library gives up after as many

_OTHER_FAMILY = {4: IpFamilies.IPV6_ONLY, 6: IpFamilies.IPV4_ONLY}


@dataclass(frozen=True, slots=True)
class ZoneOptions:
    """``search`` is the resolver's search list; None is the one that Kubernetes gives to pods.

    ``preferred_namespace`` decides between services of one name that nothing else ranks.
    """

    search: tuple[str, ...] | None = None
    preferred_namespace: str = ""
    ipv6: bool = True
    """Whether AAAA records are given at all."""


@dataclass(frozen=True, slots=True)
class Known:
    """A name of the mesh. No ``addresses`` means that it exists, but not with an address of this family.

    ``canonical`` is the name that has the addresses where that is another one: what is left without a suffix of the
    search list, or what an ExternalName stands for.
    """

    addresses: tuple[str, ...]
    result: str
    """How the log calls it."""
    canonical: str | None = None
    outside: bool = False
    """The mesh does not know ``canonical``: its addresses are those that the nameservers give."""


_NOWHERE = Known((), "no records")


def look_up(
    snapshot: Snapshot,
    client: Workload,
    name: str,
    family: Family,
    *,
    rng: random.Random,
    options: ZoneOptions = ZoneOptions(),
) -> Known | None:
    """The addresses of ``name`` in random order, or None when it is no name of the mesh that the client can see.

    1. Candidates are the name itself, its Kubernetes expansions, and both without a suffix of the search list; for
       each of them an exact name comes before wildcards, and a longer wildcard before a shorter one.
    2. Of several services the client's namespace wins, then canonical, then the preferred namespace.
    3. A service answers with its virtual addresses on the client's network, a headless one with those of its
       endpoints that may take connections, an ExternalName with those of what it stands for. Other services without
       virtual address are unknown here.
    """
    return _look_up(snapshot, client, name, family, rng, options, MAX_ALIASES)


def _look_up(
    snapshot: Snapshot,
    client: Workload,
    name: str,
    family: Family,
    rng: random.Random,
    options: ZoneOptions,
    hops: int,
) -> Known | None:
    if not is_hostname(name.removesuffix(".")):
        return None
    search = options.search
    if search is None:
        search = search_list(client.namespace, snapshot.cluster_domain)
    for alias in aliases(name, client.namespace, snapshot.cluster_domain, search):
        service = snapshot.service_by_hostname(
            alias.name,
            client.namespace,
            preferred_namespace=options.preferred_namespace,
            usable=_has_addresses,
        )
        pod: Workload | None = None
        if service is None:
            service, pod = _headless_pod(snapshot, client, alias.name, options)
        if service is None:
            continue
        if service.ip_families is _OTHER_FAMILY[family] or (family == 6 and not options.ipv6):
            return Known((), "service does not support this record type")
        if target := service.alias_of:
            literally = replace(options, search=())
            known = _look_up(snapshot, client, target, family, rng, literally, hops - 1) if hops else _NOWHERE
            if known is None:
                return Known((), "alias of a name outside the mesh", target, outside=True)
            return replace(known, canonical=known.canonical or target)
        found = [
            ip
            for ip in (
                _pod_addresses(pod, client) if pod is not None else _addresses(snapshot, service, client)
            )
            if (":" in ip) is (family == 6)
        ]
        addresses = tuple(rng.sample(found, min(len(found), MAX_ADDRESSES)))
        if not addresses:
            return Known((), "no records")
        return Known(addresses, "success", None if service.hostname.startswith("*") else alias.stripped)
    return None


def _has_addresses(service: Service) -> bool:
    return service.headless or bool(service.alias_of) or any(vip.cidr is None for vip in service.vips)


def _addresses(snapshot: Snapshot, service: Service, client: Workload) -> Iterator[str]:
    if not service.headless:
        yield from (vip.ip for vip in service.vips if vip.cidr is None and vip.network == client.network)
        return
    for endpoint in snapshot.endpoints(service.key):
        # one of each family: the others belong to the same pod
        by_family = {":" in ip: ip for ip in reversed(tuple(_pod_addresses(endpoint.workload, client)))}
        yield from by_family.values()


def _pod_addresses(pod: Workload, client: Workload) -> Iterator[str]:
    """An address on another network would be somebody else's here."""
    if pod.network == client.network:
        yield from pod.addresses


def _headless_pod(
    snapshot: Snapshot, client: Workload, name: str, options: ZoneOptions
) -> tuple[Service | None, Workload | None]:
    """The headless service and the pod behind it that ``<pod>.<service>`` names."""
    first, _, rest = name.partition(".")
    service = snapshot.service_by_hostname(
        rest,
        client.namespace,
        preferred_namespace=options.preferred_namespace,
        usable=lambda service: service.headless,
    )
    if service is None or service.hostname != rest:
        return None, None
    for endpoint in snapshot.endpoints(service.key):
        if endpoint.workload.name == first:
            return service, endpoint.workload
    return None, None
