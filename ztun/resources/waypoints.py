"""Which waypoint, if any, stands in front of a service or workload.

A label that names a waypoint which does not exist, or may not be used from there, gives an address that
resolves to nothing: such traffic is refused, for a missing waypoint must not turn into missing policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ztun.mesh.document import Document, Problem
from ztun.mesh.model import (
    HBONE_PORT,
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    NamespacedName,
    WeightedWaypoint,
)
from ztun.resources.kubernetes import KubernetesGateway, RouteNamespaces
from ztun.resources.schema import (
    GATEWAY_NAME_LABELS,
    INBOUND_BINDING,
    USE_WAYPOINT,
    USE_WAYPOINT_NAMESPACE,
    WAYPOINT_CANARY,
    WAYPOINT_CANARY_NAMESPACE,
    WAYPOINT_CANARY_WEIGHT,
    WAYPOINT_CLASS,
    WAYPOINT_FOR,
    Metadata,
)
from ztun.resources.settings import MeshSettings

PURPOSES = ("service", "workload", "all", "none")


@dataclass(frozen=True, slots=True)
class Waypoint:
    """A Gateway of class ``istio-waypoint``. ``tunnel`` is set when another proxy listens behind ours."""

    namespace: str
    name: str
    purpose: str
    allowed: RouteNamespaces
    tunnel: ApplicationTunnel | None = None

    def serves(self, kind: Literal["service", "workload"]) -> bool:
        """Whether it takes traffic dialled to services, or to workload addresses."""
        return self.purpose in (kind, "all")


def read_waypoint(document: Document, gateway: KubernetesGateway) -> tuple[Waypoint | None, list[Problem]]:
    """The waypoint a Gateway describes; nothing if it is of another class or not well formed."""
    if gateway.spec.gateway_class_name != WAYPOINT_CLASS:
        return None, []
    listeners = [one for one in gateway.spec.listeners if one.port == HBONE_PORT and one.protocol == "HBONE"]
    if len(listeners) != 1 or len(gateway.spec.listeners) != 1:
        message = f"a waypoint has exactly one listener, with port {HBONE_PORT} and protocol HBONE"
        return None, [document.problem(("spec", "listeners"), message, code="WAYPOINT")]
    purpose = gateway.metadata.label(WAYPOINT_FOR) or "service"
    if purpose not in PURPOSES:
        path = ("metadata", "labels", WAYPOINT_FOR)
        return None, [document.problem(path, f"must be one of {', '.join(PURPOSES)}", code="WAYPOINT")]
    binding = gateway.metadata.annotation(INBOUND_BINDING)
    try:
        tunnel = _parse_binding(binding) if binding else None
    except ValueError as error:
        path = ("metadata", "annotations", INBOUND_BINDING)
        return None, [document.problem(path, str(error), hint="use PROXY/<port>, NONE or NONE/<port>")]
    allowed = listeners[0].allowed_routes.namespaces
    return Waypoint(document.namespace, document.name, purpose, allowed, tunnel), []


def _parse_binding(text: str) -> ApplicationTunnel:
    protocol, _, port = text.partition("/")
    if protocol not in ("PROXY", "NONE") or (protocol == "PROXY" and not port):
        raise ValueError(f"{text!r} is not an inbound binding")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port")
    return ApplicationTunnel(AppTunnelProtocol(protocol), int(port or 0))


class Waypoints:
    """All waypoints of the mesh, and the problems met while resolving references to them."""

    def __init__(
        self,
        waypoints: Iterable[Waypoint],
        namespaces: Mapping[str, tuple[Document, Metadata]],
        settings: MeshSettings,
    ) -> None:
        self.problems: list[Problem] = []
        self._by_name = {(waypoint.namespace, waypoint.name): waypoint for waypoint in waypoints}
        self._namespaces = namespaces
        self._settings = settings
        self._reported: set[tuple[Document, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def __iter__(self) -> Iterator[Waypoint]:
        return iter(self._by_name.values())

    def key(self, waypoint: Waypoint) -> NamespacedName:
        """(namespace, hostname) of the service that stands for the waypoint's instances."""
        return (waypoint.namespace, self._settings.service_hostname(waypoint.namespace, waypoint.name))

    def instance_of(self, namespace: str, metadata: Metadata) -> Waypoint | None:
        """The waypoint whose instance a pod is."""
        if self._by_name:
            for label in GATEWAY_NAME_LABELS:
                if found := self._by_name.get((namespace, metadata.label(label))):
                    return found
        return None

    def of(
        self, document: Document, metadata: Metadata, kind: Literal["service", "workload"]
    ) -> GatewayAddress | None:
        """The waypoint for an object: its own label counts before its namespace's; ``none`` opts out."""
        naming = self._naming(document, metadata)
        if naming is None:
            return None
        named_by, labels = naming
        name = labels.label(USE_WAYPOINT)
        waypoint_namespace = labels.label(USE_WAYPOINT_NAMESPACE) or document.namespace
        found = self._find(waypoint_namespace, name, document.namespace)
        if isinstance(found, Waypoint):
            return GatewayAddress(self.key(found)) if found.serves(kind) else None
        message = f"the waypoint {waypoint_namespace}/{name} {found[0]}; traffic to what uses it is refused"
        self._report(named_by, ("metadata", "labels", USE_WAYPOINT), message, found[1])
        # RFC 2606 reserves "invalid", so no service can have this name.
        return GatewayAddress((waypoint_namespace, f"{name}.{waypoint_namespace}.waypoint.invalid"))

    def shares(self, document: Document, metadata: Metadata) -> tuple[WeightedWaypoint, ...]:
        """How a service's new connections are divided between its waypoint and the canary named beside that.

        A canary that cannot be used is no danger, for the waypoint serves alone then: it is reported, no more.
        """
        naming = self._naming(document, metadata)
        if naming is None:
            if metadata.label(WAYPOINT_CANARY):
                message = f"{WAYPOINT_CANARY} has no effect without {USE_WAYPOINT} on the same object"
                self._report(document, ("metadata", "labels", WAYPOINT_CANARY), message, severity="warning")
            return ()
        named_by, labels = naming
        name = labels.label(WAYPOINT_CANARY)
        waypoint_namespace = labels.label(USE_WAYPOINT_NAMESPACE) or document.namespace
        waypoint = self._find(waypoint_namespace, labels.label(USE_WAYPOINT), document.namespace)
        if not name or not isinstance(waypoint, Waypoint) or not waypoint.serves("service"):
            return ()
        canary_namespace = labels.label(WAYPOINT_CANARY_NAMESPACE) or document.namespace
        canary = self._find(canary_namespace, name, document.namespace)
        path: tuple[str, ...] = ("metadata", "labels", WAYPOINT_CANARY)
        weight = labels.annotation(WAYPOINT_CANARY_WEIGHT) or "0"
        reason, hint = "", ""
        if not isinstance(canary, Waypoint):
            reason, hint = canary
        elif not canary.serves("service"):
            reason, hint = f"serves {canary.purpose} traffic only", f"set {WAYPOINT_FOR} to service or all"
        elif canary is waypoint:
            reason, hint = "is the waypoint itself", "name another one, or remove the label"
        elif not (weight.isascii() and weight.isdigit() and len(weight) <= 3 and int(weight) <= 100):
            path = ("metadata", "annotations", WAYPOINT_CANARY_WEIGHT)
            reason, hint = f"has the weight {weight!r}", "write a whole number from 0 to 100"
        else:
            assert isinstance(canary, Waypoint)
            return (
                WeightedWaypoint(GatewayAddress(self.key(waypoint)), 100 - int(weight)),
                WeightedWaypoint(GatewayAddress(self.key(canary)), int(weight)),
            )
        message = (
            f"the canary waypoint {canary_namespace}/{name} {reason}; all connections go to {waypoint.name}"
        )
        self._report(named_by, path, message, hint, severity="warning")
        return ()

    def _naming(self, document: Document, metadata: Metadata) -> tuple[Document, Metadata] | None:
        """The object whose labels name the waypoint; the canary must be named by the same one."""
        named_by, labels = document, metadata
        if not metadata.label(USE_WAYPOINT):
            owner = self._namespaces.get(document.namespace)
            if owner is None or not owner[1].label(USE_WAYPOINT):
                return None
            named_by, labels = owner
        return (named_by, labels) if labels.label(USE_WAYPOINT) != "none" else None

    def _find(self, namespace: str, name: str, user: str) -> Waypoint | tuple[str, str]:
        """A waypoint that objects of namespace ``user`` may use, else what is wrong and a hint."""
        waypoint = self._by_name.get((namespace, name))
        if waypoint is None:
            return "is unknown", "create it or fix the label"
        if not self._may_use(waypoint, user):
            return f"may not be used from namespace {user}", "see allowedRoutes of the waypoint's listener"
        return waypoint

    def _may_use(self, waypoint: Waypoint, namespace: str) -> bool:
        if namespace == waypoint.namespace:
            return waypoint.allowed.from_ != "None"
        if waypoint.allowed.from_ == "Selector" and waypoint.allowed.selector is not None:
            wanted = waypoint.allowed.selector.match_labels or {}
            owner = self._namespaces.get(namespace)
            return owner is not None and wanted.items() <= (owner[1].labels or {}).items()
        return waypoint.allowed.from_ == "All"

    def _report(
        self,
        document: Document,
        path: tuple[str, ...],
        message: str,
        hint: str = "",
        *,
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        """Say it once, however many objects of a namespace it concerns."""
        if (document, message) not in self._reported:
            self._reported.add((document, message))
            self.problems.append(
                document.problem(path, message, hint=hint, code="WAYPOINT", severity=severity)
            )
