"""Which waypoint, if any, stands in front of a service or workload.

A label that names a waypoint which does not exist, or may not be used from there, gives an address that
resolves to nothing: such traffic is refused, for a missing waypoint must not turn into missing policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ztun.mesh.document import Document, Problem
from ztun.mesh.model import HBONE_PORT, ApplicationTunnel, AppTunnelProtocol, GatewayAddress, NamespacedName
from ztun.resources.kubernetes import KubernetesGateway, RouteNamespaces
from ztun.resources.schema import (
    GATEWAY_NAME_LABELS,
    INBOUND_BINDING,
    USE_WAYPOINT,
    USE_WAYPOINT_NAMESPACE,
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
        namespace = document.namespace
        named_by, labels = document, metadata
        if not metadata.label(USE_WAYPOINT):
            owner = self._namespaces.get(namespace)
            if owner is None or not owner[1].label(USE_WAYPOINT):
                return None
            named_by, labels = owner
        name = labels.label(USE_WAYPOINT)
        if name == "none":
            return None
        waypoint_namespace = labels.label(USE_WAYPOINT_NAMESPACE) or namespace
        waypoint = self._by_name.get((waypoint_namespace, name))
        if waypoint is None:
            return self._refusal(
                named_by, waypoint_namespace, name, "is unknown", "create it or fix the label"
            )
        if not self._may_use(waypoint, namespace):
            hint = "see allowedRoutes of the waypoint's listener"
            reason = f"may not be used from namespace {namespace}"
            return self._refusal(named_by, waypoint_namespace, name, reason, hint)
        return GatewayAddress(self.key(waypoint)) if waypoint.serves(kind) else None

    def _may_use(self, waypoint: Waypoint, namespace: str) -> bool:
        if namespace == waypoint.namespace:
            return waypoint.allowed.from_ != "None"
        if waypoint.allowed.from_ == "Selector" and waypoint.allowed.selector is not None:
            wanted = waypoint.allowed.selector.match_labels or {}
            owner = self._namespaces.get(namespace)
            return owner is not None and wanted.items() <= (owner[1].labels or {}).items()
        return waypoint.allowed.from_ == "All"

    def _refusal(
        self, named_by: Document, namespace: str, name: str, reason: str, hint: str
    ) -> GatewayAddress:
        message = f"the waypoint {namespace}/{name} {reason}; traffic to what uses it is refused"
        if (named_by, message) not in self._reported:
            self._reported.add((named_by, message))
            path = ("metadata", "labels", USE_WAYPOINT)
            self.problems.append(named_by.problem(path, message, hint=hint, code="WAYPOINT"))
        # RFC 2606 reserves "invalid", so no service can have this name.
        return GatewayAddress((namespace, f"{name}.{namespace}.waypoint.invalid"))
