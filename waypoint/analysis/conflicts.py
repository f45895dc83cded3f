"""Objects that get in each other's way: hosts, gateways, ports, addresses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from waypoint.analysis.configuration import Configuration
from waypoint.analysis.report import Report
from waypoint.routes.gateway_table import GatewayTable
from waypoint.routes.matching import Dialect
from waypoint.routes.model import GatewayConfig, GatewayServer, VirtualService
from waypoint.routes.names import PRIVATE, exported_to, host_matches
from ztun.mesh.model import Service
from ztun.routing import MESH_GATEWAY, Diagnostic

MAX_COMPARED_GATEWAYS = 500  # pairs are compared


def check_conflicts(configuration: Configuration, report: Report) -> None:
    """All findings of this kind."""
    _mesh_hosts(configuration, report)
    _mixed_api(configuration, report)
    _addresses(configuration, report)
    _gateways(configuration, report)
    _gateway_ports(configuration, report)
    _shared_pods(configuration, report)


def _mesh_hosts(configuration: Configuration, report: Report) -> None:
    """IST0109: for TCP, rules are concatenated, so the message says who is scanned first."""
    by_host: defaultdict[str, list[VirtualService]] = defaultdict(list)
    for owner in configuration.index.virtual_services:
        if MESH_GATEWAY in owner.gateways and owner.kind == "VirtualService":
            for host in owner.hosts:
                by_host[host].append(owner)
    for host, owners in by_host.items():
        if len(owners) < 2:
            continue
        for at, owner in enumerate(owners):
            others = [other for other in owners if other is not owner and _share_clients(owner, other)]
            if not others:
                continue
            names = ", ".join(other.key for other in others)
            first = next(one for one in owners if one is owner or one in others)
            hidden = next((one for one in owners[:at] if one in others and _takes_all(one)), None)
            message = f"host {host} is also claimed by {names}; {first.key} is scanned first for TCP"
            if hidden is not None:
                message += f", and its rules hide these ({hidden.key} takes every connection)"
            hint = "merge them into one VirtualService"
            report.add(owner.document, "IST0109", ("spec", "hosts"), message, hint)


def _takes_all(owner: VirtualService) -> bool:
    return any(rule.targets and not rule.blocks for rule in owner.tcp)


def _share_clients(one: VirtualService, other: VirtualService) -> bool:
    """Whether some namespace sees both."""
    places = {one.namespace, other.namespace, *one.export_to, *other.export_to} - {"*", PRIVATE}
    everywhere = [not owner.export_to or "*" in owner.export_to for owner in (one, other)]
    if all(everywhere):
        return True
    return any(
        exported_to(one.export_to, one.namespace, place)
        and exported_to(other.export_to, other.namespace, place)
        for place in places
    )


def _mixed_api(configuration: Configuration, report: Report) -> None:
    by_host: defaultdict[str, list[VirtualService]] = defaultdict(list)
    for owner in configuration.index.virtual_services:
        if MESH_GATEWAY in owner.gateways:
            for host in owner.hosts:
                by_host[host].append(owner)
    for host, owners in by_host.items():
        routes = [owner for owner in owners if owner.kind != "VirtualService"]
        services = [owner for owner in owners if owner.kind == "VirtualService"]
        if routes and services:
            message = f"{host} also has {routes[0].label}; which of the two acts depends on their age"
            for owner in services:
                report.add(
                    owner.document, "MIXED-API", ("spec", "hosts"), message, "use one API for a service"
                )


def _addresses(configuration: Configuration, report: Report) -> None:
    """VIP-CONFLICT."""
    by_address: defaultdict[tuple[str, str, int], list[Service]] = defaultdict(list)
    for service in configuration.snapshot.services.values():
        for vip in service.vips:
            if vip.cidr is None:
                for port in service.ports:
                    by_address[vip.network, vip.ip, port].append(service)
    for (_, ip, port), services in by_address.items():
        if len(services) < 2:
            continue
        listening = configuration.index.registry.listening(ip, port, services[0].namespace)
        owner = listening.services[0] if listening else services[0]
        for service in services:
            if service is owner:
                continue
            label = f"Service {service.namespace}/{service.name}"
            document = configuration.by_label.get(label)
            message = (
                f"{ip}:{port} belongs to {owner.hostname}, which is older; this service is not reached there"
            )
            hint = "give each service its own address"
            report.take([Diagnostic("VIP-CONFLICT", "warning", label, ("spec",), message, hint, document)])


def _gateways(configuration: Configuration, report: Report) -> None:
    """What the gateways themselves find (GW-*, TCP-HOST-ROUTING), and IST0145."""
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    gateways = configuration.index.gateways
    for config in gateways:
        key = (config.namespace if config.same_namespace else "", frozenset(config.selector.items()))
        if key in seen:
            continue
        seen.add(key)
        table = GatewayTable(configuration.index, Dialect.SIDECAR, config.namespace, config.selector)
        for opened in table.listeners.values():
            report.take(finding for finding in opened.diagnostics if not finding.code.startswith("WT-"))
        report.take(table.conflicts)
    for one, other in _pairs(gateways[:MAX_COMPARED_GATEWAYS]):
        hint = "use another port, host or selector"
        for server, rival, host in _clashes(one, other):
            place = f"port {server.port} and host {host}"
            message = f"{place} are also claimed by {one.label}, which wins: it is older or sorts first"
            report.add(other.document, "IST0145", ("spec", "servers", server.index), message, hint)
            message = f"{place} are also claimed by {other.label}, which loses them"
            report.add(one.document, "IST0145", ("spec", "servers", rival.index), message, hint)


def _pairs(gateways: tuple[GatewayConfig, ...]) -> Iterator[tuple[GatewayConfig, GatewayConfig]]:
    """Pairs with the winner first, where the proxies of one are proxies of the other."""
    for at, other in enumerate(gateways):
        for one in gateways[:at]:
            left, right = one.selector.items(), other.selector.items()
            if (left <= right or right <= left) and one.document is not other.document:
                yield one, other


def _clashes(one: GatewayConfig, other: GatewayConfig) -> Iterator[tuple[GatewayServer, GatewayServer, str]]:
    """Servers of ``other`` with those of ``one`` that claim the same port and a host of theirs."""
    for server in other.servers:
        for rival in one.servers:
            if (server.port, server.bind) != (rival.port, rival.bind):
                continue
            hosts = [
                host for _, host in server.hosts for _, claimed in rival.hosts if host_matches(host, claimed)
            ]
            if hosts:
                yield server, rival, hosts[0]


def _gateway_ports(configuration: Configuration, report: Report) -> None:
    """IST0101 (a selector that matches nothing) and IST0162 (a port the gateway's Service does not offer)."""
    population = configuration.population
    if not population:
        return
    for config in configuration.index.gateways:
        if config.same_namespace:
            continue
        pods = population.selected(config.selector)
        if not pods:
            text = ", ".join(f"{key}={value}" for key, value in config.selector.items())
            message = f"no pod has the labels {text}: nobody opens these ports"
            report.add(config.document, "IST0101", ("spec", "selector"), message)
            continue
        spaces = {namespace for namespace, _ in pods}
        selected = {frozenset(labels.items()) for _, labels in pods}
        offered: set[int] = set()
        fronted = False
        for service in configuration.snapshot.services.values():
            if service.namespace not in spaces:
                continue
            if any(frozenset(labels.items()) in selected for labels in population.endpoints(service)):
                fronted = True
                offered |= set(service.ports)
        for server in config.servers:
            if fronted and server.port not in offered:
                ports = ", ".join(str(port) for port in sorted(offered))
                message = f"no Service of the gateway's pods offers port {server.port} (offered: {ports})"
                report.add(config.document, "IST0162", ("spec", "servers", server.index, "port"), message)


def _shared_pods(configuration: Configuration, report: Report) -> None:
    """IST0116: one set of pods behind two services that disagree about a port."""
    by_target: defaultdict[tuple[str, str, int], list[tuple[Service, str]]] = defaultdict(list)
    for document in configuration.of_kind("", "Service"):
        spec = document.data.get("spec")
        selector = spec.get("selector") if isinstance(spec, dict) else None
        found = configuration.snapshot.services_with_hostname(
            f"{document.name}.{document.namespace}.svc.{configuration.snapshot.cluster_domain}"
        )
        if not isinstance(selector, dict) or not selector or not found:
            continue
        pods = ",".join(sorted(f"{key}={value}" for key, value in selector.items()))
        for port in found[0].ports.values():
            if port.target_port:
                by_target[document.namespace, pods, port.target_port].append((found[0], port.protocol))
    for (namespace, pods, target), users in by_target.items():
        protocols = {protocol for _, protocol in users}
        if len(protocols) < 2:
            continue
        names = ", ".join(f"{service.name} ({protocol or 'undeclared'})" for service, protocol in users)
        message = f"port {target} of the pods {pods} has several protocols: {names}"
        label = f"Service {namespace}/{users[-1][0].name}"
        hint = "declare one protocol"
        owner = configuration.by_label.get(label)
        report.take([Diagnostic("IST0116", "warning", label, ("spec", "ports"), message, hint, owner)])
