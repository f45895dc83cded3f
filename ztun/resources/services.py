"""Kubernetes Services and EndpointSlices to services of the mesh and their endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from ztun.mesh.address import is_hostname
from ztun.mesh.document import Document, Problem
from ztun.mesh.model import (
    BalanceMode,
    Health,
    IpFamilies,
    LoadBalancing,
    Scope,
    Service,
    ServicePort,
    Vip,
    canonical_ip,
)
from ztun.resources import kubernetes
from ztun.resources.auto_allocation import may_allocate
from ztun.resources.drafts import DraftIndex, WorkloadDraft
from ztun.resources.schema import EXPORT_TO, TRAFFIC_DISTRIBUTION, Metadata
from ztun.resources.workloads import Surroundings, outside_workload

DISTRIBUTIONS = {
    "PreferClose": (Scope.NETWORK, Scope.REGION, Scope.ZONE),
    "PreferSameZone": (Scope.NETWORK, Scope.REGION, Scope.ZONE),
    "PreferSameNode": (Scope.NETWORK, Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE),
}
PROTOCOLS = frozenset(
    {"tcp", "tls", "http", "http2", "https", "grpc", "grpc-web", "mongo", "mysql", "redis", "udp"}
)


def declared_protocol(name: str, app_protocol: str = "") -> str:
    """The protocol that ``appProtocol``, else the prefix of the port's name, declares, or nothing."""
    if app_protocol:
        return {"kubernetes.io/h2c": "HTTP2"}.get(app_protocol, app_protocol.rpartition("/")[2].upper())
    lowered = name.lower()
    if lowered == "grpc-web" or lowered.startswith("grpc-web-"):
        return "GRPC-WEB"
    prefix = lowered.partition("-")[0]
    return prefix.upper() if prefix in PROTOCOLS else ""


def exported(document: Document, values: Iterable[str]) -> tuple[str, ...]:
    """``.`` is the object's own namespace; nothing means everywhere."""
    found = tuple(
        document.namespace if value.strip() == "." else value.strip() for value in values if value.strip()
    )
    return found or ("*",)


def kubernetes_service(
    document: Document, model: kubernetes.Service, around: Surroundings
) -> tuple[Service, list[Problem]]:
    """The service of a Kubernetes Service."""
    spec, metadata, settings = model.spec, model.metadata, around.settings
    problems: list[Problem] = []
    vips: dict[str, None] = {}
    for ip in [spec.cluster_ip or "", *(spec.cluster_ips or [])]:
        if ip in ("", "None"):
            continue
        try:
            vips[canonical_ip(ip)] = None
        except ValueError:
            problems.append(document.problem(("spec", "clusterIP"), f"{ip!r} is not an IP address"))
    export_to = exported(document, metadata.annotation(EXPORT_TO).split(","))
    return Service(
        name=document.name,
        namespace=document.namespace,
        hostname=settings.service_hostname(document.namespace, document.name),
        vips=tuple(Vip(settings.network, ip) for ip in vips) if spec.type != "ExternalName" else (),
        ports=MappingProxyType(
            {
                port.port: ServicePort(
                    port.port,
                    _numeric_target(port),
                    port.name or "",
                    declared_protocol(port.name or "", port.app_protocol or ""),
                )
                for port in _tcp_ports(spec)
            }
        ),
        waypoint=around.waypoints.of(document, metadata, "service"),
        weighted_waypoints=around.waypoints.shares(document, metadata),
        load_balancing=_load_balancing(spec, metadata),
        ip_families=_families(spec),
        canonical=True,
        visible_only_in_namespace=export_to == (document.namespace,),
        export_to=export_to,
        headless=spec.cluster_ip == "None",
        alias_of=_external_name(spec),
        created=document.created,
    ), problems


def needs_address(model: kubernetes.Service) -> bool:
    """Whether a Service waits for a virtual address: outside Kubernetes nobody gives it a clusterIP.

    An ExternalName is an alias, whose target has the address.
    """
    spec = model.spec
    return (
        spec.type != "ExternalName"
        and not spec.cluster_ip
        and not spec.cluster_ips
        and may_allocate(model.metadata)
    )


def _external_name(spec: kubernetes.ServiceSpec) -> str:
    name = (spec.external_name or "").lower().removesuffix(".")
    return name if spec.type == "ExternalName" and is_hostname(name) else ""


def _tcp_ports(spec: kubernetes.ServiceSpec) -> list[kubernetes.ServicePortSpec]:
    return [port for port in spec.ports or [] if port.protocol in (None, "TCP")]


def _numeric_target(port: kubernetes.ServicePortSpec) -> int:
    if port.target_port is None:
        return port.port
    return port.target_port if isinstance(port.target_port, int) else 0


def _load_balancing(spec: kubernetes.ServiceSpec, metadata: Metadata) -> LoadBalancing:
    unready = bool(spec.publish_not_ready_addresses)
    if spec.internal_traffic_policy == "Local":
        return LoadBalancing(BalanceMode.STRICT, (Scope.NODE,), unready)
    wanted = metadata.annotation(TRAFFIC_DISTRIBUTION) or spec.traffic_distribution or ""
    if wanted in DISTRIBUTIONS:
        return LoadBalancing(BalanceMode.FAILOVER, DISTRIBUTIONS[wanted], unready)
    return LoadBalancing(allow_unhealthy=unready)


def _families(spec: kubernetes.ServiceSpec) -> IpFamilies:
    families = spec.ip_families or []
    if len(families) == 2:
        return IpFamilies.DUAL
    if not families:
        return IpFamilies.AUTOMATIC
    return IpFamilies.IPV4_ONLY if families[0] == "IPv4" else IpFamilies.IPV6_ONLY


def attach_pods(
    document: Document, service: Service, spec: kubernetes.ServiceSpec, drafts: DraftIndex
) -> list[Problem]:
    """Make the workloads that the selector of a Kubernetes Service finds its endpoints."""
    if not spec.selector or spec.type == "ExternalName":
        return []
    ports = _tcp_ports(spec)
    selected = drafts.select(service.namespace, spec.selector)
    for draft in selected:
        targets: dict[int, int] = {}
        for port in ports:
            target = port.target_port if port.target_port is not None else port.port
            number = target if isinstance(target, int) else draft.named_ports.get(target)
            if number is not None:
                targets[port.port] = number
        draft.services[service.key] = targets
    return [
        document.problem(
            ("spec", "ports", index, "targetPort"),
            f"no pod of the service has a container port named {port.target_port!r}",
            hint=f"connections to port {port.port} are refused; check the names of the containers' ports",
            code="SERVICE",
            severity="warning",
        )
        for index, port in enumerate(spec.ports or [])
        if isinstance(port.target_port, str)
        and port in ports
        and selected
        and not any(port.target_port in draft.named_ports for draft in selected)
    ]


def attach_external_name(
    document: Document,
    service: Service,
    spec: kubernetes.ServiceSpec,
    drafts: DraftIndex,
    around: Surroundings,
) -> list[Problem]:
    """An ExternalName Service has one endpoint, which is known by its DNS name."""
    if spec.type != "ExternalName":
        return []
    name = service.alias_of
    if not name:
        return [document.problem(("spec", "externalName"), f"{spec.external_name!r} is not a hostname")]
    uid = f"{around.settings.cluster_id}//Service/{document.namespace}/{document.name}/{name}"
    workload = outside_workload(document, uid, around, hostname=name)
    draft = WorkloadDraft(workload)
    draft.services[service.key] = {
        number: port.target_port or number for number, port in service.ports.items()
    }
    drafts.add(draft)
    return []


def attach_slice(
    document: Document,
    model: kubernetes.EndpointSlice,
    service: Service,
    spec: kubernetes.ServiceSpec,
    drafts: DraftIndex,
    around: Surroundings,
) -> list[Problem]:
    """Make the endpoints of a slice those of its service.

    For a service with a selector the pods themselves are read, so only addresses that no pod has are added.
    """
    by_name = {port.name or "": port.port for port in model.ports or [] if port.protocol in (None, "TCP")}
    targets = {
        port.port: target for port in _tcp_ports(spec) if (target := by_name.get(port.name or "")) is not None
    }
    problems: list[Problem] = []
    for index, endpoint in enumerate(model.endpoints or []):
        ready = endpoint.conditions is None or endpoint.conditions.ready is not False
        health = Health.HEALTHY if ready else Health.UNHEALTHY
        for address in endpoint.addresses:
            try:
                ip = canonical_ip(address)
            except ValueError:
                path = ("endpoints", index, "addresses")
                problems.append(document.problem(path, f"{address!r} is not an IP address"))
                continue
            draft = drafts.at(around.settings.network, ip)
            if draft is None:
                if spec.selector and endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod":
                    continue  # the pod is known by its own document, or not at all
                cluster = around.settings.cluster_id
                uid = f"{cluster}/discovery.k8s.io/EndpointSlice/{document.namespace}/{document.name}/{ip}"
                node = endpoint.node_name or ""
                draft = WorkloadDraft(
                    outside_workload(document, uid, around, addresses=(ip,), health=health, node=node)
                )
                drafts.add(draft)
            draft.services.setdefault(service.key, dict(targets))
    return problems
