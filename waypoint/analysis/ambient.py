"""What ambient mode makes of a configuration: attributes it refuses, rules nobody applies, mixed clients."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from waypoint.analysis.configuration import Configuration
from waypoint.analysis.report import Report
from waypoint.engines.ambient import AmbientRouter
from waypoint.engines.sidecar import SidecarRouter
from waypoint.routes.findings import ambient_findings
from waypoint.routes.matching import Dialect
from waypoint.routes.model import VirtualService
from waypoint.routes.waypoint_table import WaypointRules, build_waypoint_outcome
from ztun.mesh.model import GatewayAddress, NetworkAddress, Service, TunnelProtocol, Workload
from ztun.routing import MESH_GATEWAY, Connection, Decision, Hop, HopKind

MAX_CLIENT_CLASSES = 50  # representatives that are compared; more would not change what the finding says
WAYPOINT_CODES = ("AMB-TLS", "AMB-DR-POLICY", "WP-NS", "DR-HIDDEN")


@dataclass(frozen=True, slots=True)
class DataPlane:
    """Which kinds of clients the configuration shows."""

    ambient: bool
    sidecar: bool

    @property
    def unknown(self) -> bool:
        """Nothing says how clients join the mesh."""
        return not self.ambient and not self.sidecar


def data_plane(configuration: Configuration) -> DataPlane:
    """Read it from workloads, and from the labels of namespaces."""
    sidecar = any(workload.sidecar for workload in configuration.snapshot.workloads.values())
    ambient = any(
        workload.tunnel_protocol is TunnelProtocol.HBONE and not workload.sidecar
        for workload in configuration.snapshot.workloads.values()
    )
    for document in configuration.of_kind("", "Namespace"):
        metadata = document.data.get("metadata")
        labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
        if isinstance(labels, Mapping):
            ambient |= labels.get("istio.io/dataplane-mode") == "ambient"
            sidecar |= labels.get("istio-injection") == "enabled"
    return DataPlane(ambient, sidecar)


def check_ambient(configuration: Configuration, report: Report) -> None:
    """All findings of this kind."""
    plane = data_plane(configuration)
    sidecar, ambient = SidecarRouter(configuration.index), AmbientRouter(configuration.index)
    clients = list(_client_classes(configuration))
    gateways = {gateway.key for gateway in configuration.index.gateways}
    for owner in configuration.index.virtual_services:
        if not gateways.isdisjoint(owner.gateways):
            # Gateways run the ambient engine.
            report.take(finding for rule in owner.tcp for finding in ambient_findings(owner, rule))
        if MESH_GATEWAY not in owner.gateways or not (owner.tcp or owner.tls):
            continue
        for service in configuration.services_of(owner):
            namespace = waypoint_namespace(service.waypoint)
            if namespace is None:
                _without_waypoint(owner, service, plane, report)
                continue
            report.take(finding for rule in owner.tcp for finding in ambient_findings(owner, rule))
            _at_waypoint(configuration, service, namespace, report)
            if plane.sidecar:
                _mixed(owner, service, namespace, clients, sidecar, ambient, report)


def waypoint_namespace(address: GatewayAddress | None) -> str | None:
    """The namespace of a waypoint known by hostname; ``""`` for one known by address, ``None`` for none."""
    if address is None:
        return None
    return "" if isinstance(address.destination, NetworkAddress) else address.destination[0]


def _without_waypoint(owner: VirtualService, service: Service, plane: DataPlane, report: Report) -> None:
    found = [finding for rule in owner.tcp for finding in ambient_findings(owner, rule)]
    if plane.ambient and owner.kind in ("VirtualService", "TCPRoute"):
        message = f"{service.hostname} has no waypoint: ambient clients get no routing at all"
        hint = "create a waypoint and label the service with istio.io/use-waypoint"
        report.add(owner.document, "AMB-NO-WAYPOINT", ("spec",), message, hint)
        report.take(found)
    elif plane.unknown:
        # Nothing says that clients are ambient; worth knowing all the same.
        report.take(replace(finding, severity="info") for finding in found)


def _at_waypoint(configuration: Configuration, service: Service, namespace: str, report: Report) -> None:
    rules = WaypointRules(Dialect.AMBIENT)
    for port in service.ports:
        outcome = build_waypoint_outcome(configuration.index, rules, service, port, namespace)
        report.take(one for one in outcome.decision.diagnostics if one.code in WAYPOINT_CODES)


def _client_classes(configuration: Configuration) -> Iterator[Workload]:
    """One sidecar workload for each namespace and label set, up to a bound."""
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for workload in configuration.snapshot.workloads.values():
        key = (workload.namespace, frozenset(workload.labels.items()))
        if workload.sidecar and key not in seen and len(seen) < MAX_CLIENT_CLASSES:
            seen.add(key)
            yield workload


def _mixed(
    owner: VirtualService,
    service: Service,
    namespace: str,
    clients: list[Workload],
    sidecar: SidecarRouter,
    ambient: AmbientRouter,
    report: Report,
) -> None:
    """AMB-MIXED."""
    vip = next((vip.ip for vip in service.vips if vip.cidr is None), None)
    if vip is None:
        return
    rng = random.Random(0)  # only the weights are drawn, and those are not compared
    for port in service.ports:
        there = ambient.decide(Connection(vip, port), Hop(HopKind.WAYPOINT, namespace), rng)
        for client in clients:
            connection = Connection(vip, port, source_namespace=client.namespace, source_labels=client.labels)
            here = sidecar.decide(connection, Hop(HopKind.CLIENT, client.namespace), rng)
            if _targets(here) == _targets(there):
                continue
            message = (
                f"on port {port} of {service.hostname} clients like {client.namespace}/{client.name} (sidecar) "
                f"get {_text(here)}, ambient clients get {_text(there)}"
            )
            report.add(owner.document, "AMB-MIXED", ("spec",), message)
            return


def _targets(decision: Decision) -> list[tuple[str, int, str, float]]:
    return [(one.host, one.port, one.subset, float(one.share)) for one in decision.destinations]


def _text(decision: Decision) -> str:
    names = [
        f"{one.host}{f' subset {one.subset}' if one.subset else ''} ({float(one.share):.0%})"
        for one in decision.destinations
    ]
    return ", ".join(names) or decision.action.value
