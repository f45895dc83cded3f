"""Services, EndpointSlices and ServiceEntries to services of the mesh, and their endpoints."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from types import MappingProxyType

from certs.spiffe import SpiffeError, SpiffeId
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
    TunnelProtocol,
    Vip,
    Workload,
    canonical_ip,
)
from ztun.resources import kubernetes
from ztun.resources.drafts import DraftIndex, WorkloadDraft
from ztun.resources.istio import ServiceEntry, ServiceEntrySpec
from ztun.resources.schema import EXPORT_TO, TRAFFIC_DISTRIBUTION, Metadata
from ztun.resources.workloads import Surroundings, entry_draft

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


def _exported(document: Document, values: Iterable[str]) -> tuple[str, ...]:
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
    export_to = _exported(document, metadata.annotation(EXPORT_TO).split(","))
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
        load_balancing=_load_balancing(spec, metadata),
        ip_families=_families(spec),
        canonical=True,
        visible_only_in_namespace=export_to == (document.namespace,),
        export_to=export_to,
        headless=spec.cluster_ip == "None",
        created=document.created,
    ), problems


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


def attach_pods(service: Service, spec: kubernetes.ServiceSpec, drafts: DraftIndex) -> None:
    """Make the workloads that the selector of a Kubernetes Service finds its endpoints."""
    if not spec.selector or spec.type == "ExternalName":
        return
    ports = _tcp_ports(spec)
    for draft in drafts.select(service.namespace, spec.selector):
        targets: dict[int, int] = {}
        for port in ports:
            target = port.target_port if port.target_port is not None else port.port
            number = target if isinstance(target, int) else draft.named_ports.get(target)
            if number is not None:
                targets[port.port] = number
        draft.services[service.key] = targets


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
    name = (spec.external_name or "").lower().removesuffix(".")
    if not is_hostname(name):
        return [document.problem(("spec", "externalName"), f"{name!r} is not a hostname")]
    uid = f"{around.settings.cluster_id}//Service/{document.namespace}/{document.name}/{name}"
    workload = _outside(document, uid, around, hostname=name)
    draft = WorkloadDraft(workload)
    draft.services[service.key] = {
        number: port.target_port or number for number, port in service.ports.items()
    }
    drafts.add(draft)
    return []


def _outside(
    document: Document,
    uid: str,
    around: Surroundings,
    *,
    addresses: tuple[str, ...] = (),
    hostname: str = "",
    health: Health = Health.HEALTHY,
    node: str = "",
) -> Workload:
    """An endpoint that is no pod: no labels, no tunnel."""
    return Workload(
        uid=uid,
        name=document.name,
        namespace=document.namespace,
        addresses=addresses,
        trust_domain=around.settings.trust_domain,
        network=around.settings.network,
        node=node,
        tunnel_protocol=TunnelProtocol.NONE,
        hostname=hostname,
        workload_name=document.name,
        cluster_id=around.settings.cluster_id,
        health=health,
    )


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
                    _outside(document, uid, around, addresses=(ip,), health=health, node=node)
                )
                drafts.add(draft)
            draft.services.setdefault(service.key, dict(targets))
    return problems


def entry_services(
    document: Document, model: ServiceEntry, around: Surroundings
) -> tuple[list[Service], list[Problem]]:
    """One service per host of a ServiceEntry."""
    spec, metadata = model.spec, model.metadata
    problems: list[Problem] = []
    vips: list[Vip] = []
    for index, address in enumerate(spec.addresses):
        try:
            vips.append(_vip(address, around.settings.network))
        except ValueError:
            path = ("spec", "addresses", index)
            problems.append(document.problem(path, f"{address!r} is not an IP address or network"))
    sans: list[SpiffeId] = []
    for index, name in enumerate(spec.subject_alt_names):
        try:
            sans.append(SpiffeId.parse(name))
        except SpiffeError as error:
            path = ("spec", "subjectAltNames", index)
            hint = "only SPIFFE identities are accepted from peers"
            problems.append(document.problem(path, str(error), hint=hint, severity="warning"))
    passthrough = LoadBalancing(BalanceMode.PASSTHROUGH)
    export_to = _exported(document, spec.export_to)
    services: list[Service] = []
    for index, host in enumerate(spec.hosts):
        if not is_hostname(host.removeprefix("*.")):
            hint = "a DNS name, or *. and a DNS name"
            problems.append(document.problem(("spec", "hosts", index), f"{host!r} is not a host", hint=hint))
            continue
        services.append(
            Service(
                name=document.name,
                namespace=document.namespace,
                hostname=host.lower(),
                vips=tuple(vips),
                ports=MappingProxyType(
                    {
                        port.number: ServicePort(
                            port.number,
                            port.target_port or port.number,
                            port.name,
                            port.protocol.upper() or declared_protocol(port.name),
                        )
                        for port in spec.ports
                        if port.protocol.upper() != "UDP"
                    }
                ),
                subject_alt_names=tuple(sans),
                waypoint=around.waypoints.of(document, metadata, "service"),
                load_balancing=passthrough if spec.resolution == "NONE" else LoadBalancing(),
                visible_only_in_namespace=export_to == (document.namespace,),
                export_to=export_to,
                created=document.created,
            )
        )
    return services, problems


def _vip(address: str, network: str) -> Vip:
    if "/" not in address:
        return Vip(network, canonical_ip(address))
    cidr = ipaddress.ip_network(address, strict=False)
    if cidr.prefixlen == cidr.max_prefixlen:
        return Vip(network, canonical_ip(str(cidr.network_address)))
    return Vip(network, str(cidr.network_address), cidr)


def attach_entry(
    document: Document,
    model: ServiceEntry,
    services: Iterable[Service],
    drafts: DraftIndex,
    around: Surroundings,
) -> None:
    """Give the services of a ServiceEntry its endpoints: listed ones, selected ones, or the host itself."""
    spec = model.spec
    services = list(services)
    if spec.workload_selector is not None:
        for draft in drafts.select(document.namespace, spec.workload_selector.labels):
            _join(draft, services, spec)
        return
    prefix = (
        f"{around.settings.cluster_id}/networking.istio.io/ServiceEntry/{document.namespace}/{document.name}"
    )
    for endpoint in spec.endpoints:
        uid = f"{prefix}/{endpoint.address}"
        draft = entry_draft(document, endpoint, Metadata(), uid, around)
        # An address of a pod stands for the pod, which may have a tunnel.
        owner = next((at for ip in draft.base.addresses if (at := drafts.at(draft.base.network, ip))), None)
        if owner is not None:
            draft = WorkloadDraft(owner.base, endpoint.ports, owner.services, owner.policies)
        else:
            drafts.add(draft)
        _join(draft, services, spec)
    if spec.resolution in ("DNS", "DNS_ROUND_ROBIN") and not spec.endpoints:
        for service in services:
            if not service.hostname.startswith("*"):
                draft = WorkloadDraft(
                    _outside(document, f"{prefix}/{service.hostname}", around, hostname=service.hostname)
                )
                drafts.add(draft)
                _join(draft, [service], spec)


def _join(draft: WorkloadDraft, services: Iterable[Service], spec: ServiceEntrySpec) -> None:
    targets = {
        port.number: draft.named_ports.get(port.name) or port.target_port or port.number
        for port in spec.ports
    }
    for service in services:
        draft.services[service.key] = dict(targets)
