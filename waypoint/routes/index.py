"""Everything a router needs of one snapshot, indexed so that no lookup grows with the number of objects.

A new index takes over what it can from the previous one: an object whose document did not change is not compiled
again. What cannot be read is left out and reported; the rest works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from waypoint.resources import kinds
from waypoint.resources.destination_rule import DestinationRuleResource
from waypoint.resources.gateway import GatewayResource
from waypoint.resources.gateway_api import (
    ApiGatewayResource,
    ApiGatewaySpec,
    ApiRouteResource,
    ApiRouteSpec,
    ReferenceGrantResource,
    ReferenceGrantSpec,
)
from waypoint.resources.virtual_service import VirtualServiceResource
from waypoint.routes import compile as compiled
from waypoint.routes.destination_rules import DestinationRules
from waypoint.routes.gateway_api import ApiDocuments, convert
from waypoint.routes.model import DestinationRule, GatewayConfig, VirtualService, age_key, name_age_key
from waypoint.routes.names import exported_to, host_matches
from waypoint.routes.registry import Registry
from ztun.mesh.document import Document, Problem
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import validate
from ztun.routing import DEFAULT_ROOT_NAMESPACE, MESH_GATEWAY, Diagnostic

Compiled: TypeAlias = (
    VirtualService | DestinationRule | GatewayConfig | ApiGatewaySpec | ApiRouteSpec | ReferenceGrantSpec
)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One document as compiled, and the problems with it.

    A document that cannot be read keeps the last valid version that was compiled, if there was one.
    """

    document: Document
    compiled: Compiled | None
    problems: tuple[Problem, ...]


class HostIndex:
    """VirtualServices by host: exact names in a dictionary, wildcards by the length of their suffix."""

    def __init__(self, services: Iterable[VirtualService]) -> None:
        self._exact: dict[str, list[VirtualService]] = {}
        self._suffixes: dict[int, dict[str, list[VirtualService]]] = {}
        for service in services:
            for host in service.hosts:
                if host.startswith("*"):
                    suffix = host[1:]
                    self._suffixes.setdefault(len(suffix), {}).setdefault(suffix, []).append(service)
                else:
                    self._exact.setdefault(host, []).append(service)

    def matching(self, host: str) -> list[VirtualService]:
        """All with a host that matches, oldest first."""
        found = {id(service): service for service in self._scan(host)}
        return sorted(found.values(), key=lambda service: service.age)

    def _scan(self, host: str) -> Iterator[VirtualService]:
        if host.startswith("*"):
            for name, services in self._exact.items():
                if host_matches(host, name):
                    yield from services
            for by_suffix in self._suffixes.values():
                for suffix, services in by_suffix.items():
                    if host_matches(host, f"*{suffix}"):
                        yield from services
            return
        yield from self._exact.get(host, ())
        for length, by_suffix in self._suffixes.items():
            if length <= len(host):
                yield from by_suffix.get(host[len(host) - length :], ())


class RouteIndex:
    """The routing configuration and the registry of one snapshot. Immutable once made."""

    def __init__(
        self,
        snapshot: Snapshot,
        previous: RouteIndex | None = None,
        *,
        root_namespace: str = DEFAULT_ROOT_NAMESPACE,
    ) -> None:
        self.snapshot = snapshot
        self.root_namespace = root_namespace
        self.cluster_domain = snapshot.cluster_domain
        self.registry = Registry(snapshot)
        known = previous.entries if previous and previous.cluster_domain == self.cluster_domain else {}
        self.entries: Mapping[tuple[str, str, str, str], Entry] = {
            document.key: _entry(document, known.get(document.key), self.cluster_domain)
            for document in snapshot.documents
            if kinds.kind_of(document) in kinds.ROUTING_KINDS
        }
        converted = convert(self._api_documents(), self.cluster_domain)
        self.conversion_diagnostics: tuple[Diagnostic, ...] = converted.diagnostics
        self.virtual_services = tuple(
            sorted((*self._compiled(VirtualService), *converted.virtual_services), key=lambda item: item.age)
        )
        self.gateways = tuple(
            sorted((*self._compiled(GatewayConfig), *converted.gateways), key=lambda item: item.age)
        )
        rules = self._compiled(DestinationRule)
        self.destination_rule_list: tuple[DestinationRule, ...] = tuple(rules)
        self.destination_rules = DestinationRules(rules, root_namespace)
        self._by_gateway: dict[str, list[VirtualService]] = {}
        for service in self.virtual_services:
            for name in service.gateways:
                self._by_gateway.setdefault(name, []).append(service)
        self._mesh = HostIndex(self._by_gateway.get(MESH_GATEWAY, ()))
        self._all: HostIndex | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be read."""
        return tuple(problem for entry in self.entries.values() for problem in entry.problems)

    def mesh_candidates(self, host: str) -> list[VirtualService]:
        """All VirtualServices bound to ``mesh`` with a host that matches, oldest first."""
        return self._mesh.matching(host)

    def candidates(self, host: str) -> list[VirtualService]:
        """All VirtualServices with a host that matches, wherever they are bound, oldest first."""
        if self._all is None:
            self._all = HostIndex(self.virtual_services)
        return self._all.matching(host)

    def bound_to(self, gateway: str) -> list[VirtualService]:
        """All VirtualServices bound to the gateway ``namespace/name``, oldest first."""
        return self._by_gateway.get(gateway, [])

    def _compiled(self, kind: type[T]) -> list[T]:
        return [entry.compiled for entry in self.entries.values() if isinstance(entry.compiled, kind)]

    def _api_documents(self) -> ApiDocuments:
        gateways, routes, grants = [], [], []
        for entry in self.entries.values():
            if isinstance(entry.compiled, ApiGatewaySpec):
                gateways.append((entry.document, entry.compiled))
            elif isinstance(entry.compiled, ApiRouteSpec):
                routes.append((entry.document, entry.compiled))
            elif isinstance(entry.compiled, ReferenceGrantSpec):
                grants.append((entry.document, entry.compiled))
        labels = {
            document.name: _labels(document)
            for document in self.snapshot.documents
            if document.kind == "Namespace"
        }
        return ApiDocuments(gateways, routes, grants, labels)


def _labels(document: Document) -> Mapping[str, str]:
    metadata = document.data.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    if not isinstance(labels, dict):
        return {}
    return {str(key): value for key, value in labels.items() if isinstance(value, str)}


def in_order_for(namespace: str, services: Iterable[VirtualService]) -> list[VirtualService]:
    """The VirtualServices that ``namespace`` sees, in scan order.

    Those of the namespace itself that are not public come first, then those exported to it by name, then public
    ones; within each group the given order (oldest first) is kept.
    """
    groups: tuple[list[VirtualService], ...] = ([], [], [])
    for service in services:
        exported = service.export_to
        if not exported_to(exported, service.namespace, namespace):
            continue
        if not exported or "*" in exported:
            groups[2].append(service)
        elif service.namespace == namespace:
            groups[0].append(service)
        else:
            groups[1].append(service)
    return [service for group in groups for service in group]


def _entry(document: Document, known: Entry | None, cluster_domain: str) -> Entry:
    if known is not None and not known.problems:
        before = known.document.data
        if before is document.data or before == document.data:
            return Entry(document, _with_document(known.compiled, document), ())
    made, problems = _compile(document, cluster_domain)
    if made is None and known is not None and known.compiled is not None:
        kept = "the last valid version stays in force"
        problems = [
            replace(one, hint="; ".join(part for part in (one.hint, kept) if part)) for one in problems
        ]
        made = known.compiled
    return Entry(document, made, tuple(problems))


def _with_document(made: Compiled | None, document: Document) -> Compiled | None:
    """The same rules, with the position and load order of the new document."""
    if isinstance(made, GatewayConfig):
        return replace(made, document=document, age=name_age_key(document))
    if isinstance(made, VirtualService | DestinationRule):
        return replace(made, document=document, age=age_key(document))
    return made


def _compile(document: Document, domain: str) -> tuple[Compiled | None, list[Problem]]:
    kind = kinds.kind_of(document)
    versions = kinds.ISTIO_VERSIONS if kind[0] == kinds.ISTIO_GROUP else kinds.GATEWAY_API_VERSIONS
    if document.api_version.rpartition("/")[2] not in versions:
        hint = f"known versions: {', '.join(versions)}"
        return None, [document.problem(("apiVersion",), f"unknown version of {kind[1]}", hint=hint)]
    if kind == kinds.VIRTUAL_SERVICE:
        service, problems = validate(VirtualServiceResource, document)
        return (compiled.virtual_service(document, service.spec, domain) if service else None), problems
    if kind == kinds.DESTINATION_RULE:
        rule, problems = validate(DestinationRuleResource, document)
        return (compiled.destination_rule(document, rule.spec, domain) if rule else None), problems
    if kind == kinds.ISTIO_GATEWAY:
        gateway, problems = validate(GatewayResource, document)
        return (compiled.gateway(document, gateway.spec) if gateway else None), problems
    if kind == kinds.API_GATEWAY:
        listeners, problems = validate(ApiGatewayResource, document)
        return (listeners.spec if listeners else None), problems
    if kind == kinds.REFERENCE_GRANT:
        grant, problems = validate(ReferenceGrantResource, document)
        return (grant.spec if grant else None), problems
    route, problems = validate(ApiRouteResource, document)
    return (route.spec if route else None), problems
