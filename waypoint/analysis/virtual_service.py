"""VirtualService: what admission refuses, and what it should have warned about."""

from __future__ import annotations

from collections.abc import Sequence

from waypoint.analysis.report import Report
from waypoint.analysis.syntax import (
    gateway_error,
    is_host,
    is_host_or_ip,
    is_label,
    is_namespace,
    label_error,
)
from waypoint.analysis.unreachable import check_reachability
from waypoint.resources.virtual_service import (
    DestinationRef,
    L4Match,
    RouteDestination,
    TcpRule,
    TlsMatch,
    TlsRule,
    VirtualServiceSpec,
)
from waypoint.routes.model import parse_subnet
from waypoint.routes.names import host_matches, host_subset_of, is_ip
from ztun.mesh.document import Document, FieldPath
from ztun.routing import MESH_GATEWAY

MAX_PORT = 65_535
MAX_COMPARED_HOSTS = 1024  # overlap compares pairs


def check_virtual_service(document: Document, spec: VirtualServiceSpec, report: Report) -> None:
    """All findings about one VirtualService by itself."""
    _Check(document, spec, report).run()


def check_export_to(document: Document, export_to: Sequence[str], report: Report) -> None:
    """VS-EXPORTTO; the rule is the same for DestinationRules."""
    path: FieldPath = ("spec", "exportTo")

    def wrong(message: str, hint: str = "") -> None:
        report.add(document, "VS-EXPORTTO", path, message, hint)

    if len(set(export_to)) != len(export_to):
        wrong("an entry occurs twice")
    if "." in export_to and document.namespace in export_to:
        wrong(f"'.' and {document.namespace} mean the same", "keep one of the two")
    if "*" in export_to and len(set(export_to)) > 1:
        wrong("'*' stands for all namespaces and must be alone")
    for entry in export_to:
        if entry == "~":
            wrong("'~' is only for ServiceEntry")
        elif entry not in (".", "*") and not is_namespace(entry):
            wrong(f"{entry!r} is no namespace")


class _Check:
    def __init__(self, document: Document, spec: VirtualServiceSpec, report: Report) -> None:
        self._document = document
        self._spec = spec
        self._report = report

    def _add(self, code: str, path: FieldPath, message: str, hint: str = "") -> None:
        self._report.add(self._document, code, ("spec", *path), message, hint)

    def run(self) -> None:
        spec = self._spec
        if not spec.hosts:
            if spec.gateways or spec.tcp or spec.tls:
                message = "without hosts this is a delegate, which may only have http"
                self._add("VS-DELEGATE-L4", ("hosts",), message, "name the hosts")
        else:
            self._hosts()
        if not (spec.http or spec.tcp or spec.tls):
            self._add("VS-NO-ROUTES", (), "there is no http, tcp or tls entry", "add one")
        self._gateways(("gateways",), spec.gateways)
        check_export_to(self._document, spec.export_to, self._report)
        for index, rule in enumerate(spec.tcp):
            self._tcp_rule(index, rule)
        for index, tls_rule in enumerate(spec.tls):
            self._tls_rule(index, tls_rule)
        check_reachability(self._document, spec, self._report)

    def _hosts(self) -> None:
        hosts = self._spec.hosts
        in_mesh = not self._spec.gateways or MESH_GATEWAY in self._spec.gateways
        for index, host in enumerate(hosts):
            if host == "*":
                if in_mesh:
                    hint = "name the hosts, or bind it to gateways other than mesh"
                    self._add("VS-HOST-WILD-MESH", ("hosts", index), "'*' is not allowed in the mesh", hint)
            elif not is_host_or_ip(host):
                hint = "use a DNS name, *.suffix or an IP address"
                self._add("VS-HOST-SYNTAX", ("hosts", index), f"{host!r} is no host", hint)
        self._overlaps(hosts[:MAX_COMPARED_HOSTS])

    def _overlaps(self, hosts: Sequence[str]) -> None:
        seen: dict[str, int] = {}
        wildcards: list[str] = []
        for index, host in enumerate(hosts):
            other = host if host in seen else next((one for one in wildcards if host_matches(one, host)), "")
            if not other and host.startswith("*"):
                other = next((one for one in seen if host_matches(one, host)), "")
            if other:
                self._add("VS-HOST-DUP", ("hosts", index), f"{host} overlaps with {other}", "remove one")
            seen.setdefault(host, index)
            if host.startswith("*"):
                wildcards.append(host)

    def _gateways(self, path: FieldPath, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            error = gateway_error(name)
            if error:
                self._add("VS-GW-SYNTAX", (*path, index), error, "write mesh, NAME or NAMESPACE/NAME")
            elif "/" not in name and "." in name:
                message = f"{name} is the old form of a gateway name"
                self._add("VS-GW-LEGACY", (*path, index), message, "write NAMESPACE/NAME")

    def _tcp_rule(self, index: int, rule: TcpRule) -> None:
        path: FieldPath = ("tcp", index)
        if not rule.route:
            self._add("TCP-NO-ROUTE", path, "the rule has no route", "add a route")
        for at, match in enumerate(rule.match):
            self._match((*path, "match", at), match)
        self._route((*path, "route"), rule.route)

    def _tls_rule(self, index: int, rule: TlsRule) -> None:
        path: FieldPath = ("tls", index)
        if not rule.route:
            self._add("TLS-NO-ROUTE", path, "the rule has no route", "add a route")
        if not rule.match:
            self._add("TLS-NO-MATCH", path, "the rule has no match", "add a match with sniHosts")
        for at, match in enumerate(rule.match):
            self._match((*path, "match", at), match)
            if match is not None:
                self._server_names((*path, "match", at, "sniHosts"), match)
        self._route((*path, "route"), rule.route)

    def _match(self, path: FieldPath, match: L4Match | None) -> None:
        if match is None:
            self._add(
                "TCP-MATCH-NULL", path, "the block is null", "remove it, or write {} to match everything"
            )
            return
        for index, text in enumerate(match.destination_subnets):
            if parse_subnet(text) is None:
                message = f"{text!r} is neither an IP address nor a network"
                self._add("TCP-SUBNET", (*path, "destinationSubnets", index), message, "e.g. 10.0.0.0/8")
        if match.port and not 0 < match.port <= MAX_PORT:
            self._add("TCP-PORT", (*path, "port"), f"{match.port} is no port", "use 1 to 65535")
        error = label_error(match.source_labels)
        if error:
            self._add("TCP-LABELS", (*path, "sourceLabels"), error)
        self._gateways((*path, "gateways"), match.gateways)
        if match.source_namespace and not is_namespace(match.source_namespace):
            message = f"{match.source_namespace!r} is no namespace, so the block never matches"
            self._add("TCP-NAMESPACE-SYNTAX", (*path, "sourceNamespace"), message)

    def _server_names(self, path: FieldPath, match: TlsMatch) -> None:
        if not match.sni_hosts:
            self._add("TLS-NO-SNI", path[:-1], "the block has no sniHosts", "add the server names")
        for index, name in enumerate(match.sni_hosts):
            if is_ip(name):
                message = f"{name} is an IP address; clients never send one as server name"
                self._add("TLS-SNI-IP", (*path, index), message)
            elif name != "*" and not is_host(name):
                self._add("TLS-SNI-SYNTAX", (*path, index), f"{name!r} is no server name")
            elif not any(host_subset_of(name.lower(), host.lower()) for host in self._spec.hosts):
                message = f"{name} is not covered by the hosts ({', '.join(self._spec.hosts)})"
                hint = "add it to hosts, or use a narrower name"
                self._add("TLS-SNI-NOT-IN-HOSTS", (*path, index), message, hint)

    def _route(self, path: FieldPath, routes: Sequence[RouteDestination | None]) -> None:
        total = 0
        for index, route in enumerate(routes):
            if route is None or route.destination is None:
                self._add("DST-MISSING", (*path, index), "there is no destination", "add destination.host")
            else:
                self._destination((*path, index, "destination"), route.destination)
            weight = (route.weight or 0) if route else 0
            total += max(weight, 0)
            if weight < 0:
                self._add("WT-NEGATIVE", (*path, index, "weight"), f"weight {weight} is below 0")
        if len(routes) > 1 and total == 0:
            message = "all weights are 0 or absent: no connection would go anywhere"
            self._add("WT-TOTAL-ZERO", path, message, "give each destination a weight")

    def _destination(self, path: FieldPath, destination: DestinationRef) -> None:
        host = destination.host
        if not is_host(host) and not is_ip(host):
            message = f"{host!r} is no destination host" if host else "host is empty"
            self._add("DST-HOST-SYNTAX", (*path, "host"), message, "use the name of a service")
        if destination.subset and not is_label(destination.subset):
            message = f"{destination.subset!r} is no subset name"
            self._add("DST-SUBSET-NAME", (*path, "subset"), message, "use letters, digits and '-'")
        if destination.port is not None:
            number = destination.port.number
            if number is None or not 0 < number <= MAX_PORT:
                message = "port has no number" if number is None else f"{number} is no port"
                self._add("DST-PORT-NUMBER", (*path, "port"), message, "add number, 1 to 65535")
