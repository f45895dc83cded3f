"""One state of the mesh with the indices that make each lookup independent of the size of the mesh.

A snapshot never changes; a new state is a new snapshot. Ranking where several objects claim one address or
name: the client's own namespace first, then services marked canonical, then the order in which they were
given.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from ztun.mesh.document import Document, Problem
from ztun.mesh.model import (
    Authorization,
    Health,
    NamespacedName,
    PolicyScope,
    Service,
    TunnelProtocol,
    Workload,
)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload behind a service; ``ports`` maps the service's ports to those the workload listens on."""

    workload: Workload
    ports: Mapping[int, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class _CidrVips:
    """Network-sized VIPs of one network and IP version, by prefix length and then by network number."""

    width: int
    by_length: tuple[tuple[int, Mapping[int, tuple[Service, ...]]], ...]

    def covering(self, address: int) -> Iterator[tuple[int, Service]]:
        for length, services in self.by_length:
            for service in services.get(address >> (self.width - length), ()):
                yield length, service


def is_visible(service: Service, client_namespace: str | None) -> bool:
    """Whether clients of a namespace see the service; ``None`` asks on behalf of the mesh itself: always."""
    if client_namespace is None:
        return True
    own = client_namespace == service.namespace
    if service.visible_only_in_namespace:
        return own
    exported = service.export_to
    return "*" in exported or client_namespace in exported or (own and "." in exported)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything known about the mesh at one moment. Made by :func:`build_snapshot`."""

    generation: int
    workloads: Mapping[str, Workload]
    services: Mapping[NamespacedName, Service]
    policies: Mapping[str, Authorization]
    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]
    cluster_domain: str
    _by_address: Mapping[tuple[str, str], Workload]
    _by_node: Mapping[str, tuple[Workload, ...]]
    _by_name: Mapping[NamespacedName, Workload]
    _by_workload_hostname: Mapping[NamespacedName, Workload]
    _by_vip: Mapping[tuple[str, str], tuple[Service, ...]]
    _by_cidr: Mapping[tuple[str, int], _CidrVips]
    _by_hostname: Mapping[str, tuple[Service, ...]]
    _endpoints: Mapping[NamespacedName, tuple[Endpoint, ...]]
    _global_policies: tuple[Authorization, ...]
    _namespace_policies: Mapping[str, tuple[Authorization, ...]]
    _target_policies: Mapping[tuple[str, str, str, str], tuple[Authorization, ...]]

    def workload_by_uid(self, uid: str) -> Workload | None:
        """The workload with this unique id."""
        return self.workloads.get(uid)

    def workload_by_address(self, network: str, ip: str) -> Workload | None:
        """The workload that owns a canonical IP address. Pods of the host's network own none."""
        return self._by_address.get((network, ip))

    def workload_named(self, namespace: str, name: str) -> Workload | None:
        """The pod (else the WorkloadEntry) of this name."""
        return self._by_name.get((namespace, name))

    def workload_by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """The workload that is reached by this DNS name."""
        return self._by_workload_hostname.get((namespace, hostname))

    def workloads_of_node(self, node: str) -> tuple[Workload, ...]:
        """All workloads that run on a node."""
        return self._by_node.get(node, ())

    def service_by_vip(self, network: str, ip: str, client_namespace: str | None) -> Service | None:
        """The service a client means by a virtual address: an exact one, else the network that ranks first.

        Networks rank by own namespace, then prefix length, then canonical. An exact VIP that the client may
        not see does not hide a network it may. ``client_namespace`` None disregards visibility.
        """
        exact = _best(self._by_vip.get((network, ip), ()), client_namespace)
        if exact is not None or not self._by_cidr:
            return exact
        address = ipaddress.ip_address(ip)
        cidrs = self._by_cidr.get((network, address.version))
        if cidrs is None:
            return None
        covering = [one for one in cidrs.covering(int(address)) if is_visible(one[1], client_namespace)]
        if not covering:
            return None
        return max(
            covering, key=lambda one: (one[1].namespace == client_namespace, one[0], one[1].canonical)
        )[1]

    def service_by_hostname(
        self,
        host: str,
        client_namespace: str | None,
        *,
        preferred_namespace: str = "",
        usable: Callable[[Service], bool] | None = None,
    ) -> Service | None:
        """The service a client means by a name: an exact one, else the most specific wildcard (``*.b.c``).

        ``preferred_namespace`` ranks behind canonical. Services that are not ``usable`` do not count.
        """

        def best(name: str) -> Service | None:
            services = self._by_hostname.get(name, ())
            if usable is not None and services:
                services = tuple(filter(usable, services))
            return _best(services, client_namespace, preferred_namespace)

        host = host.lower().removesuffix(".")
        found = best(host)
        while found is None and "." in host:
            host = host.partition(".")[2]
            found = best(f"*.{host}")
        return found

    def services_with_hostname(self, host: str) -> tuple[Service, ...]:
        """Every service with exactly this hostname, in any namespace."""
        return self._by_hostname.get(host.lower(), ())

    def endpoints(self, key: NamespacedName) -> tuple[Endpoint, ...]:
        """The endpoints of a service that may take connections (unready ones only if the service says so)."""
        return self._endpoints.get(key, ())

    def policies_for(self, workload: Workload) -> tuple[Authorization, ...]:
        """The policies a node proxy enforces for a workload: mesh-wide, of its namespace, and by selector."""
        general = self._namespace_policies.get(workload.namespace, self._global_policies)
        if not workload.authorization_policies:
            return general
        selected = (self.policies.get(key) for key in workload.authorization_policies)
        return general + tuple(policy for policy in selected if policy is not None)

    def policies_targeting(
        self, namespace: str, group: str, kind: str, name: str
    ) -> tuple[Authorization, ...]:
        """The policies attached to an object by ``targetRefs``, which a waypoint enforces."""
        return self._target_policies.get((namespace, group, kind, name), ())


def _best(
    services: Sequence[Service], client_namespace: str | None, preferred_namespace: str = ""
) -> Service | None:
    visible = [service for service in services if is_visible(service, client_namespace)]
    if len(visible) < 2:
        return visible[0] if visible else None
    return max(
        visible,
        key=lambda service: (
            service.namespace == client_namespace,
            service.canonical,
            service.namespace == preferred_namespace,
        ),
    )


def build_snapshot(
    *,
    workloads: Iterable[Workload],
    services: Iterable[Service],
    policies: Iterable[Authorization],
    documents: Iterable[Document] = (),
    problems: Iterable[Problem] = (),
    generation: int = 0,
    cluster_domain: str = "cluster.local",
) -> Snapshot:
    """Index one state of the mesh. Of two objects with the same key the later one counts."""
    by_uid = {workload.uid: workload for workload in workloads}
    by_key = {service.key: service for service in services}
    by_policy = {policy.key: policy for policy in policies}
    ranked = sorted(by_uid.values(), key=_address_rank, reverse=True)
    global_policies, namespace_policies, target_policies = _policy_indices(by_policy.values())
    return Snapshot(
        generation=generation,
        workloads=MappingProxyType(by_uid),
        services=MappingProxyType(by_key),
        policies=MappingProxyType(by_policy),
        documents=tuple(documents),
        problems=tuple(problems),
        cluster_domain=cluster_domain,
        _by_address=_first(
            ((workload.network, ip), workload)
            for workload in ranked
            if not workload.host_network
            for ip in workload.addresses
        ),
        _by_node=_grouped((workload.node, workload) for workload in by_uid.values() if workload.node),
        _by_name=_first(((workload.namespace, workload.name), workload) for workload in ranked),
        _by_workload_hostname=_first(
            ((workload.namespace, workload.hostname), workload) for workload in ranked if workload.hostname
        ),
        _by_vip=_grouped(
            ((vip.network, vip.ip), service)
            for service in by_key.values()
            for vip in service.vips
            if vip.cidr is None or vip.cidr.prefixlen == vip.cidr.max_prefixlen
        ),
        _by_cidr=_cidr_index(by_key.values()),
        _by_hostname=_grouped((service.hostname.lower(), service) for service in by_key.values()),
        _endpoints=_endpoint_index(by_uid.values(), by_key),
        _global_policies=global_policies,
        _namespace_policies=namespace_policies,
        _target_policies=target_policies,
    )


def _address_rank(workload: Workload) -> int:
    """Which of several workloads owns an address: a pod before an entry, a mesh member before a stranger."""
    pod = 2 if "//Pod/" in workload.uid else 0
    return pod + (1 if workload.tunnel_protocol is TunnelProtocol.HBONE else 0)


def _first(pairs: Iterable[tuple[K, V]]) -> Mapping[K, V]:
    found: dict[K, V] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found


def _grouped(pairs: Iterable[tuple[K, V]]) -> Mapping[K, tuple[V, ...]]:
    groups: defaultdict[K, list[V]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: tuple(values) for key, values in groups.items()}


def _cidr_index(services: Iterable[Service]) -> Mapping[tuple[str, int], _CidrVips]:
    lengths: defaultdict[tuple[str, int, int], dict[int, dict[int, list[Service]]]] = defaultdict(dict)
    for service in services:
        for vip in service.vips:
            cidr = vip.cidr
            if cidr is None or cidr.prefixlen == cidr.max_prefixlen:
                continue
            of_family = lengths[vip.network, cidr.version, cidr.max_prefixlen]
            number = int(cidr.network_address) >> (cidr.max_prefixlen - cidr.prefixlen)
            of_family.setdefault(cidr.prefixlen, {}).setdefault(number, []).append(service)
    return {
        (network, version): _CidrVips(
            width,
            tuple(
                (length, {number: tuple(found) for number, found in by_number.items()})
                for length, by_number in sorted(by_length.items(), reverse=True)
            ),
        )
        for (network, version, width), by_length in lengths.items()
    }


def _endpoint_index(
    workloads: Iterable[Workload], services: Mapping[NamespacedName, Service]
) -> Mapping[NamespacedName, tuple[Endpoint, ...]]:
    def pairs() -> Iterator[tuple[NamespacedName, Endpoint]]:
        for workload in workloads:
            for key, ports in workload.services.items():
                service = services.get(key)
                if service is None:
                    continue
                if workload.health is Health.HEALTHY or service.load_balancing.allow_unhealthy:
                    yield key, Endpoint(workload, ports)

    return _grouped(pairs())


def _policy_indices(
    policies: Iterable[Authorization],
) -> tuple[
    tuple[Authorization, ...],
    Mapping[str, tuple[Authorization, ...]],
    Mapping[tuple[str, str, str, str], tuple[Authorization, ...]],
]:
    """Mesh-wide policies; mesh-wide and own policies of each namespace that has some; policies by target."""
    enforced: list[Authorization] = []
    targeted: list[tuple[tuple[str, str, str, str], Authorization]] = []
    for policy in policies:
        if policy.target_refs:
            targeted += [((policy.namespace, *reference), policy) for reference in policy.target_refs]
        else:
            enforced.append(policy)
    everywhere = tuple(policy for policy in enforced if policy.scope is PolicyScope.GLOBAL)
    own = _grouped((policy.namespace, policy) for policy in enforced if policy.scope is PolicyScope.NAMESPACE)
    return everywhere, {name: everywhere + found for name, found in own.items()}, _grouped(targeted)
