"""Rules that meet the wrong kind of port, and match values that no connection to the service can have."""

from __future__ import annotations

from waypoint.analysis.configuration import Configuration
from waypoint.analysis.report import Report
from waypoint.routes.findings import gateway_match_findings, port_findings, protocol_findings, weight_findings
from waypoint.routes.model import VirtualService
from waypoint.routes.registry import protocol_kind
from waypoint.routes.subnets import duplicate, order_findings, subnet_findings
from ztun.mesh.model import IpNetwork, Service
from ztun.routing import MESH_GATEWAY

MAX_ORDERED_SUBNETS = 512  # order is compared pairwise


def check_protocols(configuration: Configuration, report: Report) -> None:
    """All findings of this kind."""
    for owner in configuration.index.virtual_services:
        if owner.kind != "VirtualService":
            continue
        for rule in (*owner.tcp, *owner.tls):
            report.take(gateway_match_findings(owner, rule))
            report.take(weight_findings(owner, rule))
        if MESH_GATEWAY not in owner.gateways:
            continue
        services = configuration.services_of(owner)
        for service in services:
            _sections(owner, service, report)
            for rule in (*owner.tcp, *owner.tls):
                report.take(subnet_findings(owner, rule, service))
        if len(services) == 1:
            for rule in (*owner.tcp, *owner.tls):
                report.take(port_findings(owner, rule, services[0]))
        _subnets(owner, report)
    _undeclared(configuration, report)


def _sections(owner: VirtualService, service: Service, report: Report) -> None:
    """PROTO-*, unless another port of the service is of the kind that the rules are for."""
    kinds = {port: protocol_kind(declared.protocol) for port, declared in service.ports.items()}
    wanted = {
        kind for kind, used in (("tcp", owner.tcp), ("tls", owner.tls), ("http", owner.http_rules)) if used
    }
    if wanted & set(kinds.values()):
        return
    for port, kind in sorted(kinds.items()):
        if kind != "udp":
            report.take(protocol_findings(owner, service, port))


def _subnets(owner: VirtualService, report: Report) -> None:
    """DUP-CIDR and SUBNET-ORDER within one VirtualService."""
    keepers: dict[IpNetwork, str] = {}
    entries = []
    for rule in owner.tcp:
        for block in rule.blocks:
            # Blocks that other attributes tell apart may well repeat a network.
            if block.source_labels or block.source_namespace or block.port or block.gateways:
                continue
            for subnet in block.subnets:
                place = f"tcp[{rule.index}].match[{block.index}]"
                keeper = keepers.setdefault(subnet.network, place)
                if keeper != place:
                    report.take([duplicate(owner, rule, subnet.network, keeper)])
                entries.append((owner, rule, subnet.network))
    if len(entries) <= MAX_ORDERED_SUBNETS:
        report.take(order_findings(entries))


def _undeclared(configuration: Configuration, report: Report) -> None:
    """IST0118."""
    for document in configuration.of_kind("", "Service"):
        host = f"{document.name}.{document.namespace}.svc.{configuration.snapshot.cluster_domain}"
        for service in configuration.snapshot.services_with_hostname(host):
            for port in service.ports.values():
                if not port.protocol:
                    message = f"port {port.number} declares no protocol: a client that sends HTTP is not TCP"
                    hint = "name it tcp-..., or set appProtocol"
                    report.add(document, "IST0118", ("spec", "ports"), message, hint)
    for document in configuration.of_kind("networking.istio.io", "ServiceEntry"):
        _entry_addresses(configuration, document.label, report)


def _entry_addresses(configuration: Configuration, label: str, report: Report) -> None:
    """IST0134: without an address a TCP service of this kind cannot be told from others on its port."""
    document = configuration.by_label[label]
    spec = document.data.get("spec")
    if not isinstance(spec, dict) or spec.get("addresses"):
        return
    ports = spec.get("ports")
    for port in ports if isinstance(ports, list) else ():
        if isinstance(port, dict) and str(port.get("protocol", "TCP")).upper() in ("TCP", ""):
            message = f"port {port.get('number')} is TCP, and the entry has no addresses"
            report.add(document, "IST0134", ("spec",), message, "add addresses")
            return
