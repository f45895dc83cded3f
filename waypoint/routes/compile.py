"""Documents to rules: every name expanded, every network parsed, in the namespace of the object."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from waypoint.resources.destination_rule import DestinationRuleSpec
from waypoint.resources.gateway import GatewaySpec, ServerSpec
from waypoint.resources.virtual_service import L4Match, RouteDestination, TcpRule, TlsRule, VirtualServiceSpec
from waypoint.routes.model import (
    Block,
    DestinationRule,
    GatewayConfig,
    GatewayServer,
    L4Rule,
    RouteTarget,
    ServerTls,
    Subset,
    VirtualService,
    age_key,
    name_age_key,
    parse_subnet,
)
from waypoint.routes.names import expand_gateway, expand_host
from waypoint.routes.registry import WILDCARD_ADDRESSES
from waypoint.routes.traffic import policy_spec
from ztun.mesh.document import Document
from ztun.routing import MESH_GATEWAY


def virtual_service(document: Document, spec: VirtualServiceSpec, cluster_domain: str) -> VirtualService:
    """A VirtualService with its rules in order."""
    namespace = document.namespace
    gateways = tuple(dict.fromkeys(expand_gateway(name, namespace) for name in spec.gateways))
    return VirtualService(
        namespace=namespace,
        name=document.name,
        hosts=tuple(dict.fromkeys(expand_host(host, namespace, cluster_domain) for host in spec.hosts)),
        gateways=gateways or (MESH_GATEWAY,),
        export_to=tuple(spec.export_to),
        tcp=_rules("tcp", spec.tcp, namespace, cluster_domain),
        tls=_rules("tls", spec.tls, namespace, cluster_domain),
        http_rules=len(spec.http),
        age=age_key(document),
        document=document,
    )


def _rules(
    section: str, rules: Sequence[TcpRule | TlsRule], namespace: str, cluster_domain: str
) -> tuple[L4Rule, ...]:
    return tuple(
        L4Rule(
            section,
            index,
            tuple(_block(at, match, namespace) for at, match in enumerate(rule.match)),
            tuple(_target(route, namespace, cluster_domain) for route in rule.route),
        )
        for index, rule in enumerate(rules)
    )


def _block(index: int, match: L4Match | None, namespace: str) -> Block:
    if match is None:
        return Block(index, invalid="the block is null")
    subnets = (parse_subnet(text) for text in match.destination_subnets)
    return Block(
        index=index,
        subnets=tuple(subnet for subnet in subnets if subnet is not None),
        uses_subnets=bool(match.destination_subnets),
        port=match.port,
        source_labels=MappingProxyType(match.source_labels),
        source_namespace=match.source_namespace,
        gateways=tuple(expand_gateway(name, namespace) for name in match.gateways),
        sni_hosts=tuple(host.lower() for host in getattr(match, "sni_hosts", ())),
    )


def _target(route: RouteDestination | None, namespace: str, cluster_domain: str) -> RouteTarget:
    if route is None or route.destination is None:
        return RouteTarget("", weight=route.weight if route else None)
    destination = route.destination
    port = destination.port.number if destination.port else None
    host = expand_host(destination.host, namespace, cluster_domain)
    return RouteTarget(host, port or None, destination.subset, route.weight)


def destination_rule(document: Document, spec: DestinationRuleSpec, cluster_domain: str) -> DestinationRule:
    """A DestinationRule; a subset name that occurs twice keeps its first meaning."""
    subsets: dict[str, Subset] = {}
    for entry in spec.subsets:
        policy = policy_spec(entry.traffic_policy) if entry.traffic_policy else None
        subsets.setdefault(entry.name, Subset(entry.name, MappingProxyType(entry.labels), policy))
    selector = spec.workload_selector
    return DestinationRule(
        namespace=document.namespace,
        name=document.name,
        host=expand_host(spec.host, document.namespace, cluster_domain),
        export_to=tuple(spec.export_to),
        selector=MappingProxyType(selector.match_labels) if selector else None,
        subsets=tuple(subsets.values()),
        traffic=policy_spec(spec.traffic_policy) if spec.traffic_policy else None,
        age=age_key(document),
        document=document,
    )


def gateway(document: Document, spec: GatewaySpec) -> GatewayConfig:
    """An Istio Gateway."""
    return GatewayConfig(
        namespace=document.namespace,
        name=document.name,
        selector=MappingProxyType(spec.selector),
        servers=tuple(_server(index, server) for index, server in enumerate(spec.servers)),
        age=name_age_key(document),
        document=document,
    )


def _server(index: int, spec: ServerSpec) -> GatewayServer:
    hosts = []
    for text in spec.hosts:
        owner, slash, host = text.partition("/")
        hosts.append((owner, host.lower()) if slash else ("*", text.lower()))
    tls = None
    if spec.tls is not None:
        tls = ServerTls(
            spec.tls.mode,
            spec.tls.credential_name or next(iter(spec.tls.credential_names), ""),
            spec.tls.server_certificate,
            spec.tls.private_key,
            spec.tls.ca_certificates,
            tuple(spec.tls.subject_alt_names),
            tuple(spec.tls.verify_certificate_spki),
            tuple(spec.tls.verify_certificate_hash),
            spec.tls.min_protocol_version,
            spec.tls.max_protocol_version,
            tuple(spec.tls.cipher_suites),
        )
    port = spec.port
    return GatewayServer(
        index=index,
        port=port.number if port else 0,
        protocol=port.protocol.upper() if port else "",
        name=port.name if port else "",
        bind="" if spec.bind in WILDCARD_ADDRESSES else spec.bind,
        hosts=tuple(hosts),
        tls=tls,
    )
