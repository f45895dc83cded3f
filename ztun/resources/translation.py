"""Documents to a snapshot of the mesh.

A document that is not valid does not take its object away: the last valid version of it stays in force, if
there was one. Otherwise it is left out, except for policies, which then deny (see ``policies`` and
``peer_authentication``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from ztun.mesh.document import Document, Problem, Severity
from ztun.mesh.model import (
    HBONE_PORT,
    Authorization,
    NamespacedName,
    PolicyScope,
    Service,
    ServicePort,
)
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.resources import kubernetes
from ztun.resources.auto_allocation import Unaddressed, allocate
from ztun.resources.documents import POLICY_KINDS, validate
from ztun.resources.drafts import DraftIndex, WorkloadDraft
from ztun.resources.entries import ServiceEntry, WorkloadEntry
from ztun.resources.peer_authentication import attach_peer_authentication, closed_authentication
from ztun.resources.policies import (
    closed_policy,
    compile_policy,
    foreign_targets,
    selector_of,
    unread_policies,
)
from ztun.resources.schema import Metadata, Object
from ztun.resources.security import AuthorizationPolicy, PeerAuthentication
from ztun.resources.service_entries import attach_entry, entry_services, recorded_addresses
from ztun.resources.services import (
    attach_external_name,
    attach_pods,
    attach_slice,
    kubernetes_service,
    needs_address,
)
from ztun.resources.settings import MeshSettings
from ztun.resources.waypoints import Waypoint, Waypoints, read_waypoint
from ztun.resources.workloads import Surroundings, entry_workload, pod_workload

Kind: TypeAlias = tuple[str, str]
"""(API group, kind)."""
DocumentKey: TypeAlias = tuple[str, str, str, str]
M = TypeVar("M", bound=Object)

MODELS: Mapping[Kind, type[Object]] = {
    ("", "Namespace"): kubernetes.Namespace,
    ("", "Node"): kubernetes.Node,
    ("", "Pod"): kubernetes.Pod,
    ("", "Service"): kubernetes.Service,
    ("discovery.k8s.io", "EndpointSlice"): kubernetes.EndpointSlice,
    ("gateway.networking.k8s.io", "Gateway"): kubernetes.KubernetesGateway,
    ("networking.istio.io", "ServiceEntry"): ServiceEntry,
    ("networking.istio.io", "WorkloadEntry"): WorkloadEntry,
    ("security.istio.io", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io", "PeerAuthentication"): PeerAuthentication,
}
ROUTING_KINDS: frozenset[Kind] = frozenset(
    {
        ("networking.istio.io", "VirtualService"),
        ("networking.istio.io", "DestinationRule"),
        ("networking.istio.io", "Gateway"),
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "TCPRoute"),
        ("gateway.networking.k8s.io", "TLSRoute"),
        ("gateway.networking.k8s.io", "ReferenceGrant"),
        ("", "Namespace"),
        ("", "Secret"),
    }
)
"""Kept as they are for whoever evaluates routes: labels of namespaces admit routes, Secrets hold certificates."""
SILENT_KINDS: frozenset[Kind] = frozenset(
    {
        ("", "ServiceAccount"),
        ("apps", "Deployment"),
        ("apps", "ReplicaSet"),
        ("gateway.networking.k8s.io", "GatewayClass"),
    }
)
"""Belong to the configuration but say nothing about the mesh that other documents do not."""
SECURITY_GROUP = "security.istio.io"
HTTP_KINDS = frozenset({"RequestAuthentication"})
"""Of the group of policies, and nothing that can be decided on connections."""
NEARLY = 0.85  # as difflib counts: one letter less or two exchanged, but not policy.linkerd.io, which has policies too
_KINDS_BY_SPELLING = {
    (group, kind.casefold()): kind for group, kind in (*MODELS, *ROUTING_KINDS, *SILENT_KINDS)
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A valid document with the model made of it."""

    document: Document
    model: Object


@dataclass(frozen=True, slots=True)
class Translation:
    """A snapshot, and the valid documents to fall back on next time, by group, kind, namespace and name."""

    snapshot: Snapshot
    accepted: Mapping[DocumentKey, Accepted]


@dataclass
class _Reading:
    """The documents of all kinds, validated. Models are held with the document they came from."""

    settings: MeshSettings
    last_accepted: Mapping[DocumentKey, Accepted]
    accepted: dict[DocumentKey, Accepted] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    models: dict[Kind, list[tuple[Document, Any]]] = field(default_factory=dict)
    closed: list[Document] = field(default_factory=list)
    """Policies that are not valid and never were."""
    routing: list[Document] = field(default_factory=list)

    def of(self, model: type[M]) -> list[tuple[Document, M]]:
        """All valid documents of a kind."""
        kind = next(kind for kind, known in MODELS.items() if known is model)
        return self.models.get(kind, [])

    def read(self, documents: Iterable[Document]) -> None:
        unknown: set[Kind] = set()
        """Reported once for all objects of a kind."""
        for document in documents:
            kind = (document.group, document.kind)
            if kind in ROUTING_KINDS:
                self.routing.append(document)
            if kind in MODELS:
                self._validate(kind, document)
            elif kind not in ROUTING_KINDS and kind not in SILENT_KINDS and kind not in unknown:
                problem = _unknown_kind(document)
                self.problems.append(problem)
                if problem.severity != "error":
                    unknown.add(kind)

    def _validate(self, kind: Kind, document: Document) -> None:
        earlier = self.last_accepted.get(document.key)
        if earlier is not None and earlier.document.data is document.data:
            self._accept(kind, Accepted(document, earlier.model))
            return
        model, problems = validate(MODELS[kind], document)
        if isinstance(model, AuthorizationPolicy):
            problems = foreign_targets(document, model)
        if model is not None and not problems:
            self._accept(kind, Accepted(document, model))
            return
        consequence = "the object is left out"
        if earlier is not None:
            self._accept(kind, earlier)
            consequence = "the last valid version stays in force"
        elif kind == ("security.istio.io", "AuthorizationPolicy"):
            self.closed.append(document)
            consequence = f"until it is corrected it {closed_policy(document, self.settings)[2]}"
        elif kind == ("security.istio.io", "PeerAuthentication"):
            self.models.setdefault(kind, []).append((document, closed_authentication(document)))
            consequence = "until it is corrected it demands mutual TLS"
        self.problems += [
            replace(problem, hint="; ".join(part for part in (problem.hint, consequence) if part))
            for problem in problems
        ]

    def _accept(self, kind: Kind, accepted: Accepted) -> None:
        self.accepted[accepted.document.key] = accepted
        self.models.setdefault(kind, []).append((accepted.document, accepted.model))


def _unknown_kind(document: Document) -> Problem:
    """A kind that means nothing here. Where a policy was meant it is an error: what it denies is not denied."""
    meant = _KINDS_BY_SPELLING.get((document.group, document.kind.casefold()))
    hint = f"write {meant}" if meant is not None else ""
    severity: Severity = "warning" if meant is not None else "info"
    if document.group == SECURITY_GROUP and document.kind in HTTP_KINDS:
        hint, severity = "use a proxy that reads HTTP", "warning"
    elif _means_policy(document):
        alike = difflib.get_close_matches(document.kind, POLICY_KINDS, n=1) or POLICY_KINDS
        hint = f"nothing of it is enforced; did you mean {' or '.join(alike)} of {SECURITY_GROUP}/v1?"
        severity = "error"
    return document.problem(
        ("kind",),
        f"objects of {document.api_version} {document.kind} are not used",
        hint=hint,
        code="KIND",
        severity=severity,
    )


def _means_policy(document: Document) -> bool:
    """Whether it is of the group of policies, or of a kind of policy in a group that is nearly called so."""
    if document.group == SECURITY_GROUP:
        return True
    groups = difflib.get_close_matches(document.group, [SECURITY_GROUP], cutoff=NEARLY)
    return document.kind in POLICY_KINDS and bool(groups)


def translate(
    documents: Iterable[Document],
    *,
    settings: MeshSettings,
    problems: Iterable[Problem] = (),
    last_accepted: Mapping[DocumentKey, Accepted] = MappingProxyType({}),
    generation: int = 0,
    policies_unread: bool = False,
) -> Translation:
    """Build the snapshot that a set of documents describes.

    ``problems`` (met while reading the documents) come first in the snapshot's own. ``last_accepted`` is that
    of the previous translation: the versions to fall back on. A document whose ``data`` is the same object
    as then is not validated again. With ``policies_unread`` there may be policies that nobody has read: everything
    is denied.
    """
    reading = _Reading(settings, last_accepted)
    reading.problems += problems
    reading.read(documents)
    around = _surroundings(reading)
    drafts = DraftIndex(_drafts(reading, around))
    services = _services(reading, around, drafts)
    policies = _policies(reading, drafts)
    if policies_unread:
        policies += unread_policies(settings)
    snapshot = build_snapshot(
        workloads=drafts.finish(),
        services=services,
        policies=policies,
        documents=reading.routing,
        problems=[*reading.problems, *around.waypoints.problems],
        generation=generation,
        cluster_domain=settings.cluster_domain,
    )
    return Translation(snapshot, reading.accepted)


def _surroundings(reading: _Reading) -> Surroundings:
    namespaces = {
        document.name: (document, model.metadata) for document, model in reading.of(kubernetes.Namespace)
    }
    waypoints: list[Waypoint] = []
    for document, model in reading.of(kubernetes.KubernetesGateway):
        waypoint, problems = read_waypoint(document, model)
        reading.problems += problems
        if waypoint is not None:
            waypoints.append(waypoint)
    return Surroundings(
        settings=reading.settings,
        waypoints=Waypoints(waypoints, namespaces, reading.settings),
        namespaces=namespaces,
        nodes={document.name: model.metadata for document, model in reading.of(kubernetes.Node)},
    )


def _drafts(reading: _Reading, around: Surroundings) -> Iterable[WorkloadDraft]:
    for document, pod in reading.of(kubernetes.Pod):
        draft = pod_workload(document, pod, around)
        if draft is not None:
            yield draft
    for document, entry in reading.of(WorkloadEntry):
        yield entry_workload(document, entry, around)


def _services(reading: _Reading, around: Surroundings, drafts: DraftIndex) -> Iterable[Service]:
    by_key: dict[NamespacedName, Service] = {}
    unaddressed: dict[NamespacedName, Unaddressed] = {}
    specs: dict[NamespacedName, kubernetes.ServiceSpec] = {}
    for document, model in reading.of(kubernetes.Service):
        service, problems = kubernetes_service(document, model, around)
        reading.problems += problems
        by_key[service.key], specs[document.namespace, document.name] = service, model.spec
        if needs_address(model):
            unaddressed[service.key] = Unaddressed(document)
        reading.problems += attach_pods(document, service, model.spec, drafts)
        reading.problems += attach_external_name(document, service, model.spec, drafts, around)
    for document, slices in reading.of(kubernetes.EndpointSlice):
        name = slices.metadata.label("kubernetes.io/service-name")
        spec = specs.get((document.namespace, name))
        if spec is not None:
            hostname = reading.settings.service_hostname(document.namespace, name)
            service = by_key[document.namespace, hostname]
            reading.problems += attach_slice(document, slices, service, spec, drafts, around)
    for document, entry in reading.of(ServiceEntry):
        found, problems = entry_services(document, entry, around)
        reading.problems += problems
        # A Service of the cluster is not replaced by an entry of the same name in its namespace.
        own = [service for service in found if service.key not in by_key]
        by_key |= {service.key: service for service in own}
        for service in own:
            recorded = recorded_addresses(entry, service)
            if recorded is None:
                unaddressed.pop(service.key, None)
            else:
                unaddressed[service.key] = Unaddressed(document, recorded)
        attach_entry(document, entry, own, drafts, around)
    _waypoint_services(by_key, around, drafts)
    in_use = {vip.ip for service in by_key.values() for vip in service.vips}
    in_use.update(ip for draft in drafts for ip in draft.base.addresses)
    given, problems = allocate(by_key, unaddressed, in_use, reading.settings.network)
    reading.problems += problems
    return (by_key | given).values()


def _waypoint_services(
    by_key: dict[NamespacedName, Service], around: Surroundings, drafts: DraftIndex
) -> None:
    """Each waypoint is reached through the service of its name, whether or not a document describes that."""
    port = ServicePort(HBONE_PORT, HBONE_PORT, "mesh", "HBONE")
    instances: dict[NamespacedName, list[WorkloadDraft]] = {}
    for draft in drafts if around.waypoints else ():
        metadata = Metadata.model_construct(labels=dict(draft.base.labels))
        waypoint = around.waypoints.instance_of(draft.base.namespace, metadata)
        if waypoint is not None:
            instances.setdefault(around.waypoints.key(waypoint), []).append(draft)
    for waypoint in around.waypoints:
        key = around.waypoints.key(waypoint)
        service = by_key.get(key) or Service(waypoint.name, waypoint.namespace, key[1], canonical=True)
        if HBONE_PORT not in service.ports:
            service = replace(service, ports=MappingProxyType({**service.ports, HBONE_PORT: port}))
        # Its own traffic must not be sent to a waypoint again.
        by_key[key] = replace(service, waypoint=None, weighted_waypoints=())
        for draft in instances.get(key, []):
            draft.services.setdefault(key, {}).setdefault(HBONE_PORT, HBONE_PORT)


def _policies(reading: _Reading, drafts: DraftIndex) -> list[Authorization]:
    settings = reading.settings
    policies: list[Authorization] = []

    def enforce(policy: Authorization, labels: Mapping[str, str]) -> None:
        policies.append(policy)
        if policy.scope is PolicyScope.WORKLOAD_SELECTOR and not policy.target_refs:
            everywhere = policy.namespace == settings.root_namespace
            for draft in drafts.select(None if everywhere else policy.namespace, labels):
                draft.policies.append(policy.key)

    for document, model in reading.of(AuthorizationPolicy):
        compiled, problems = compile_policy(document, model, settings)
        reading.problems += problems
        if compiled is not None:
            enforce(compiled, selector_of(model))
    for document in reading.closed:
        closed, labels, _ = closed_policy(document, settings)
        if closed is not None:
            enforce(closed, labels)
    return policies + attach_peer_authentication(reading.of(PeerAuthentication), drafts, settings)
