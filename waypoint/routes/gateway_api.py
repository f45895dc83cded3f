"""Gateway API routes turned into the same rules as a VirtualService.

A TCPRoute has no match: attachment decides. Each parent gives one VirtualService: a listener of a Gateway becomes
the gateway ``namespace/gateway#listener``, a Service parent becomes the hop ``mesh``. Attachment problems are
findings with the reason codes of the route's status conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from waypoint.resources.gateway_api import (
    ApiGatewaySpec,
    ApiRouteSpec,
    BackendRef,
    ListenerSpec,
    ParentRef,
    ReferenceGrantSpec,
)
from waypoint.resources.kinds import GATEWAY_API_GROUP, ISTIO_GROUP
from waypoint.routes.model import (
    Block,
    GatewayConfig,
    GatewayServer,
    L4Rule,
    RouteTarget,
    ServerTls,
    VirtualService,
    age_key,
    name_age_key,
)
from waypoint.routes.names import PRIVATE, expand_host, host_matches, host_subset_of
from ztun.mesh.document import Document, FieldPath, Severity
from ztun.routing import MESH_GATEWAY, Diagnostic

WAYPOINT_CLASS = "istio-waypoint"
GATEWAY_NAME_LABEL = "gateway.networking.k8s.io/gateway-name"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
LISTENER_PROTOCOLS = {"TCPRoute": ("TCP",), "TLSRoute": ("TLS",)}


@dataclass(frozen=True, slots=True)
class ApiDocuments:
    """The Gateway API objects of one configuration, already validated for shape."""

    gateways: Sequence[tuple[Document, ApiGatewaySpec]]
    routes: Sequence[tuple[Document, ApiRouteSpec]]
    grants: Sequence[tuple[Document, ReferenceGrantSpec]]
    namespace_labels: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of a conversion."""

    virtual_services: tuple[VirtualService, ...]
    gateways: tuple[GatewayConfig, ...]
    diagnostics: tuple[Diagnostic, ...]


def convert(objects: ApiDocuments, cluster_domain: str) -> Converted:
    """Convert all routes, oldest first: of two routes for one attachment the older one is used."""
    conversion = _Conversion(objects, cluster_domain)
    for document, spec in sorted(objects.routes, key=lambda item: age_key(item[0])):
        conversion.route(document, spec)
    gateways = tuple(
        config for document, spec in objects.gateways for config in listener_configs(document, spec)
    )
    return Converted(tuple(conversion.virtual_services), gateways, tuple(conversion.diagnostics))


def listener_configs(document: Document, spec: ApiGatewaySpec) -> Iterable[GatewayConfig]:
    """The TCP and TLS listeners of a Gateway; a waypoint has none that this converts."""
    if spec.gateway_class_name == WAYPOINT_CLASS:
        return
    for index, listener in enumerate(spec.listeners):
        tls = None
        if listener.tls is not None or listener.protocol == "TLS":
            passthrough = listener.tls is not None and listener.tls.mode == "Passthrough"
            references = listener.tls.certificate_refs if listener.tls else []
            # a Secret of another namespace is not taken for one of the same name here
            own = [one.name for one in references if one.namespace in ("", document.namespace)]
            name = own[0] if own else ""
            tls = ServerTls("PASSTHROUGH" if passthrough else "SIMPLE", credential_name=name)
        host = listener.hostname.lower() or "*"
        server = GatewayServer(
            index, listener.port, listener.protocol.upper(), listener.name, "", (("*", host),), tls
        )
        yield GatewayConfig(
            namespace=document.namespace,
            name=f"{document.name}#{listener.name}",
            selector=MappingProxyType({GATEWAY_NAME_LABEL: document.name}),
            servers=(server,),
            age=name_age_key(document),
            document=document,
            same_namespace=True,
        )


class _Conversion:
    def __init__(self, objects: ApiDocuments, cluster_domain: str) -> None:
        self.virtual_services: list[VirtualService] = []
        self.diagnostics: list[Diagnostic] = []
        self._domain = cluster_domain
        self._gateways = {(document.namespace, document.name): spec for document, spec in objects.gateways}
        self._grants = objects.grants
        self._namespace_labels = objects.namespace_labels
        self._attached: dict[tuple[str, str, int, str], Document] = {}

    def route(self, document: Document, spec: ApiRouteSpec) -> None:
        for index, parent in enumerate(spec.parent_refs):
            if parent.kind == "Gateway" and parent.group == GATEWAY_API_GROUP:
                self._gateway_parent(document, spec, index, parent)
            elif parent.kind == "Service" and parent.group in ("", "core"):
                self._service_parent(document, spec, index, parent)
            else:
                self._report(
                    document,
                    "GAPI-KIND-NOT-ALLOWED",
                    "warning",
                    ("spec", "parentRefs", index),
                    f"a route cannot be attached to {parent.kind} {parent.name}",
                    "parents are a Gateway or a Service",
                )

    def _gateway_parent(self, document: Document, spec: ApiRouteSpec, index: int, parent: ParentRef) -> None:
        path: FieldPath = ("spec", "parentRefs", index)
        namespace = parent.namespace or document.namespace
        gateway = self._gateways.get((namespace, parent.name))
        if gateway is None:
            message = f"Gateway {namespace}/{parent.name} does not exist"
            self._report(document, "IST0101", "error", path, message, "check parentRefs")
            return
        named = [
            listener
            for listener in gateway.listeners
            if parent.section_name in ("", listener.name) and parent.port in (None, listener.port)
        ]
        suitable = [listener for listener in named if _accepts_kind(listener, document.kind)]
        if not suitable:
            message = f"no listener of Gateway {namespace}/{parent.name} takes a {document.kind}"
            hint = f"it needs a listener with protocol {' or '.join(LISTENER_PROTOCOLS[document.kind])}"
            self._report(document, "GAPI-KIND-NOT-ALLOWED", "warning", path, message, hint)
            return
        allowed = [one for one in suitable if self._accepts_namespace(one, namespace, document.namespace)]
        if not allowed:
            message = f"Gateway {namespace}/{parent.name} takes no routes from namespace {document.namespace}"
            hint = "set allowedRoutes.namespaces on the listener"
            self._report(document, "GAPI-NOT-ALLOWED-BY-LISTENERS", "warning", path, message, hint)
            return
        for listener in allowed:
            name = f"{namespace}/{parent.name}#{listener.name}"
            hosts: tuple[str, ...] = ("*",)
            sni: tuple[str, ...] = ()
            if document.kind == "TLSRoute":
                sni = _sni_hosts(spec.hostnames, listener.hostname)
                hosts = sni
                if not sni:
                    message = f"no hostname fits listener {listener.name} ({listener.hostname})"
                    self._report(document, "GAPI-NO-MATCHING-HOSTNAME", "warning", path, message, "")
                    continue
            if document.kind == "TCPRoute" and not self._claim(document, path, name, 0):
                continue
            self._add(document, spec, name, hosts, sni, 0, grants=True, export_to=())

    def _service_parent(self, document: Document, spec: ApiRouteSpec, index: int, parent: ParentRef) -> None:
        path: FieldPath = ("spec", "parentRefs", index)
        namespace = parent.namespace or document.namespace
        host = expand_host(parent.name, namespace, self._domain)
        consumer = namespace != document.namespace
        if consumer:
            self._report(
                document,
                "WP-NS",
                "warning",
                path,
                f"the route is not in the namespace of Service {namespace}/{parent.name}: only clients in "
                f"{document.namespace} use it, and no waypoint does",
                f"move it to namespace {namespace} to route for everybody",
            )
        sni: tuple[str, ...] = ()
        if document.kind == "TLSRoute":
            sni = tuple(name.lower() for name in spec.hostnames) or (host,)
        port = parent.port or 0
        if not self._claim(document, path, f"{document.namespace if consumer else ''}|{host}", port):
            return
        export_to = (PRIVATE,) if consumer else ()
        self._add(document, spec, MESH_GATEWAY, (host,), sni, port, grants=False, export_to=export_to)

    def _claim(self, document: Document, path: FieldPath, place: str, port: int) -> bool:
        key = (document.kind, place, port, "")
        owner = self._attached.setdefault(key, document)
        if owner is document:
            return True
        message = f"{owner.label} is older and already attached here; this route is not used"
        self._report(document, "GAPI-CONFLICTED", "warning", path, message, "remove one of the two")
        return False

    def _add(
        self,
        document: Document,
        spec: ApiRouteSpec,
        gateway: str,
        hosts: tuple[str, ...],
        sni: tuple[str, ...],
        port: int,
        *,
        grants: bool,
        export_to: tuple[str, ...],
    ) -> None:
        blocks = (Block(0, sni_hosts=sni, attached_port=port),) if sni or port else ()
        section = "tls" if document.kind == "TLSRoute" else "tcp"
        rules = []
        for index, rule in enumerate(spec.rules):
            path: FieldPath = ("spec", "rules", index, "backendRefs")
            targets = tuple(
                self._target(document, (*path, at), backend, grants)
                for at, backend in enumerate(rule.backend_refs)
            )
            if targets and not any(target.weight for target in targets):
                message = "all weights are 0: every connection is refused"
                self._report(document, "WT-ZERO", "warning", path, message, "give one backend a weight")
            elif not all(target.weight for target in targets):
                message = "a backend with weight 0 gets no connections"
                self._report(document, "WT-ZERO", "info", path, message, "")
            rules.append(L4Rule(section, index, blocks, targets, explicit_weights=True))
        self.virtual_services.append(
            VirtualService(
                namespace=document.namespace,
                name=document.name,
                hosts=hosts,
                gateways=(gateway,),
                export_to=export_to,
                tcp=tuple(rules) if section == "tcp" else (),
                tls=tuple(rules) if section == "tls" else (),
                http_rules=0,
                age=age_key(document),
                document=document,
                kind=document.kind,
            )
        )

    def _target(
        self, document: Document, path: FieldPath, backend: BackendRef, needs_grant: bool
    ) -> RouteTarget:
        weight = max(backend.weight, 0)
        if backend.kind == "Hostname" and backend.group == ISTIO_GROUP:
            return RouteTarget(backend.name.lower(), backend.port, weight=weight)
        namespace = backend.namespace or document.namespace
        known = backend.kind == "Service" and backend.group in ("", "core")
        if not known:
            message = f"a backend of kind {backend.kind} is not known; its share of connections is refused"
            self._report(document, "GAPI-INVALID-KIND", "error", path, message, "use a Service")
            return RouteTarget("", backend.port, weight=weight, permitted=False)
        if (
            needs_grant
            and namespace != document.namespace
            and not self._granted(document, namespace, backend)
        ):
            self._report(
                document,
                "GAPI-REFNOTPERMITTED",
                "error",
                path,
                f"no ReferenceGrant in {namespace} permits {document.kind}s of {document.namespace} to use "
                f"Service {backend.name}; its share of connections is refused",
                f"create a ReferenceGrant in namespace {namespace}",
            )
            return RouteTarget("", backend.port, weight=weight, permitted=False)
        return RouteTarget(expand_host(backend.name, namespace, self._domain), backend.port, weight=weight)

    def _granted(self, document: Document, namespace: str, backend: BackendRef) -> bool:
        return any(
            grant.namespace == namespace
            and any(
                source.group == GATEWAY_API_GROUP
                and source.kind == document.kind
                and source.namespace == document.namespace
                for source in spec.from_
            )
            and any(
                target.group in ("", "core")
                and target.kind == "Service"
                and target.name in ("", backend.name)
                for target in spec.to
            )
            for grant, spec in self._grants
        )

    def _accepts_namespace(self, listener: ListenerSpec, gateway_namespace: str, namespace: str) -> bool:
        allowed = listener.allowed_routes.namespaces
        if allowed.from_ == "All":
            return True
        if allowed.from_ == "Same":
            return namespace == gateway_namespace
        if allowed.from_ != "Selector" or allowed.selector is None or allowed.selector.match_expressions:
            return False  # what cannot be evaluated does not let a route in
        labels = {NAMESPACE_NAME_LABEL: namespace, **self._namespace_labels.get(namespace, {})}
        return all(labels.get(key) == value for key, value in allowed.selector.match_labels.items())

    def _report(
        self, document: Document, code: str, severity: Severity, path: FieldPath, message: str, hint: str
    ) -> None:
        self.diagnostics.append(Diagnostic(code, severity, document.label, path, message, hint, document))


def _accepts_kind(listener: ListenerSpec, kind: str) -> bool:
    if listener.protocol not in LISTENER_PROTOCOLS.get(kind, ()):
        return False
    kinds = listener.allowed_routes.kinds
    return not kinds or any(entry.kind == kind and entry.group == GATEWAY_API_GROUP for entry in kinds)


def _sni_hosts(hostnames: Sequence[str], listener: str) -> tuple[str, ...]:
    """Hostnames of the route that the listener's hostname admits, each as narrow as the two together."""
    admitted = listener.lower() or "*"
    if not hostnames:
        return (admitted,)
    found = []
    for name in (host.lower() for host in hostnames):
        if host_subset_of(name, admitted):
            found.append(name)
        elif host_matches(name, admitted):
            found.append(admitted)
    return tuple(dict.fromkeys(found))
