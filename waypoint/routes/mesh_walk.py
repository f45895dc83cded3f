"""Routing on the client's side (sidecar): all attributes, longest prefix, server names.

The walk makes a table for one dialled service port and one class of clients. TCP algorithm:

1. Rules are scanned in order over all candidate VirtualServices. A rule without routes is skipped.
2. A rule without blocks, or whose first passing block has no subnets, takes every address and ends the scan.
3. Otherwise the subnets of its passing blocks become chains; of equal networks the first stays.
4. If nothing took every address, the dialled service itself does.

TLS ports use the ``tls`` section: each passing block gives chains for its server names; the service itself is only
reachable when no rule passed.
"""

from __future__ import annotations

from collections.abc import Sequence

from waypoint.routes.destinations import fallthrough, rule_outcome
from waypoint.routes.findings import (
    about,
    gateway_match_findings,
    port_findings,
    protocol_findings,
    without_routes,
)
from waypoint.routes.index import RouteIndex, in_order_for
from waypoint.routes.matching import Asking, Dialect, refusal
from waypoint.routes.mesh_table import Client, MeshTable, unknown_outcome
from waypoint.routes.model import Block, L4Rule, VirtualService
from waypoint.routes.outcome import Outcome
from waypoint.routes.registry import Listening, protocol_kind
from waypoint.routes.subnets import duplicate, order_findings, subnet_findings
from waypoint.routes.trace import Trace
from ztun.mesh.model import IpNetwork, Service
from ztun.routing import MESH_GATEWAY, Action, Diagnostic, RouteEndpoint

MAX_ORDERED_SUBNETS = 512  # SUBNET-ORDER compares pairs; beyond this the check costs more than it tells


def build_mesh_table(
    index: RouteIndex, listening: Listening, port: int, client: Client, trace: Trace | None = None
) -> MeshTable:
    """The table for a service port (or for all services that share a port's addresses)."""
    builder = _Builder(index, port, client, trace)
    if listening.shared:
        for service, networks in listening.shared:
            builder.service(service, networks)
    else:
        conflict = _vip_conflict(listening, port) if len(listening.services) > 1 else None
        pod = None
        if listening.pod is not None:
            owner = listening.services[0]
            pod = next(
                (one for one in index.registry.endpoints(owner, port) if one.workload is listening.pod), None
            )
        builder.service(listening.services[0], (), conflict=conflict, pod=pod)
    return builder.finish()


def _vip_conflict(listening: Listening, port: int) -> Diagnostic:
    owner, others = listening.services[0], listening.services[1:]
    names = ", ".join(service.hostname for service in others)
    return Diagnostic(
        "VIP-CONFLICT",
        "warning",
        f"Service {owner.namespace}/{owner.name}",
        (),
        f"{owner.hostname} is the oldest service on this address and port {port}; {names} cannot be reached there",
        "give each service its own address",
    )


class _Builder:
    def __init__(self, index: RouteIndex, port: int, client: Client, trace: Trace | None) -> None:
        self._index = index
        self._port = port
        self._client = client
        self._trace = trace
        self._asking = Asking(MESH_GATEWAY, port, client.namespace, client.labels)
        self._table = MeshTable(unknown_outcome(client.registry_only))
        self._keepers: dict[IpNetwork, str] = {}
        self._made: dict[tuple[int, str, int, int | None], Outcome] = {}

    def finish(self) -> MeshTable:
        return self._table

    def service(
        self,
        service: Service,
        networks: tuple[IpNetwork, ...],
        *,
        conflict: Diagnostic | None = None,
        pod: RouteEndpoint | None = None,
    ) -> None:
        """Add the chains of one service. ``networks`` are its addresses on a shared listener, else empty."""
        kind = protocol_kind(service.ports[self._port].protocol)
        found = [conflict] if conflict else []
        owners = self._owners(service)
        for owner in owners:
            found += protocol_findings(owner, service, self._port)
            for rule in (*owner.tcp, *owner.tls):
                found += gateway_match_findings(owner, rule)
                found += port_findings(owner, rule, service)
                found += subnet_findings(owner, rule, service)
        view = self._client.view
        if kind == "http":
            self._note(1, service.hostname, f"port {self._port} is HTTP: tcp and tls rules are not used")
            action = Action.HTTP_LAYER
            default = fallthrough(self._index, view, service, self._port, action=action, diagnostics=found)
            self._default(networks, default)
            return
        if not service.ports[self._port].protocol and self._table.http is None:
            action = Action.HTTP_LAYER
            self._table.http = fallthrough(
                self._index, view, service, self._port, action=action, diagnostics=found
            )
        if kind == "tls":
            self._tls_chains(service, owners, networks, found)
        else:
            self._tcp_chains(service, owners, networks, found, pod)

    def _owners(self, service: Service) -> list[VirtualService]:
        bound = self._index.mesh_candidates(service.hostname)
        owners = in_order_for(self._client.namespace, bound)
        if self._trace is not None:
            seen = {id(owner) for owner in owners}
            for other in self._index.candidates(service.hostname):
                if id(other) in seen:
                    continue
                if MESH_GATEWAY not in other.gateways:
                    reason = f"bound to {', '.join(other.gateways)}, not to mesh"
                else:
                    reason = f"not exported to namespace {self._client.namespace or '(unknown)'}"
                self._note(1, other.label, f"not considered: {reason}")
        return owners

    def _note(self, depth: int, subject: str, outcome: str) -> None:
        if self._trace is not None:
            self._trace.add(depth, subject, outcome)

    def _tcp_chains(
        self,
        service: Service,
        owners: list[VirtualService],
        networks: tuple[IpNetwork, ...],
        found: list[Diagnostic],
        pod: RouteEndpoint | None,
    ) -> None:
        chains: list[tuple[VirtualService, L4Rule, int | None, tuple[tuple[IpNetwork, int], ...]]] = []
        catch_all = False
        for owner in owners:
            self._note(1, owner.label, "considered")
            for rule in owner.tcp:
                if not rule.targets and not rule.explicit_weights:
                    found.append(without_routes(owner, rule))
                    self._note(2, f"tcp[{rule.index}]", "skipped: no route")
                    continue
                block, subnets = self._passing(rule, service)
                if block is None and not subnets and rule.blocks:
                    continue
                if subnets:
                    chains.append((owner, rule, None, subnets))
                    continue
                self._note(2, f"tcp[{rule.index}]", "takes every address; later rules are not looked at")
                chains.append((owner, rule, block, ()))
                catch_all = True
                break
            if catch_all:
                break
        found += self._duplicates(chains)
        for owner, rule, block, subnets in chains:
            if not subnets:
                self._default(networks, self._rule(service, owner, rule, block, found))
            for network, at in subnets:
                self._table.keep(network, "", self._rule(service, owner, rule, at, found))
        if catch_all:
            return
        if networks and {network for _, _, _, subnets in chains for network, _ in subnets} == set(networks):
            self._note(1, service.hostname, "its own addresses are all taken by rules")
            return
        self._note(1, service.hostname, "what no rule takes goes to the service itself")
        default = fallthrough(self._index, self._client.view, service, self._port, pod=pod, diagnostics=found)
        self._default(networks, default)

    def _passing(
        self, rule: L4Rule, service: Service
    ) -> tuple[int | None, tuple[tuple[IpNetwork, int], ...]]:
        """The block that takes every address, or the networks of the passing blocks with their block numbers."""
        if not rule.blocks:
            self._note(2, f"tcp[{rule.index}]", "has no match")
        subnets: list[tuple[IpNetwork, int]] = []
        for block in rule.blocks:
            reason = refusal(Dialect.SIDECAR, block, self._asking)
            place = f"tcp[{rule.index}].match[{block.index}]"
            if reason:
                self._note(2, place, f"does not apply: {reason}")
            elif not block.uses_subnets:
                self._note(2, place, "applies to every address")
                return block.index, ()
            else:
                listed = ", ".join(str(subnet.network) for subnet in block.subnets) or "nothing valid"
                self._note(2, place, f"applies to destination addresses in {listed}")
                subnets += [(subnet.network, block.index) for subnet in block.subnets]
        return None, tuple(subnets)

    def _duplicates(
        self,
        chains: Sequence[tuple[VirtualService, L4Rule, int | None, tuple[tuple[IpNetwork, int], ...]]],
    ) -> list[Diagnostic]:
        found = []
        ordered: list[tuple[VirtualService, L4Rule, IpNetwork]] = []
        for owner, rule, _, subnets in chains:
            for network, block in subnets:
                place = f"{owner.key} {rule.section}[{rule.index}].match[{block}]"
                keeper = self._keepers.setdefault(network, place)
                if keeper != place:
                    found.append(duplicate(owner, rule, network, keeper))
                ordered.append((owner, rule, network))
        if len(ordered) <= MAX_ORDERED_SUBNETS:
            found += order_findings(ordered)
        return found

    def _rule(
        self,
        service: Service,
        owner: VirtualService,
        rule: L4Rule,
        block: int | None,
        found: Sequence[Diagnostic],
    ) -> Outcome:
        key = (id(owner), rule.section, rule.index, block)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = rule_outcome(
                self._index,
                self._client.view,
                owner,
                rule,
                block,
                self._port,
                service=service,
                diagnostics=found,
                trace=self._trace,
            )
        return made

    def _default(self, networks: tuple[IpNetwork, ...], outcome: Outcome, pattern: str = "") -> None:
        for network in networks or (None,):
            self._table.keep(network, pattern, outcome)

    def _tls_chains(
        self,
        service: Service,
        owners: list[VirtualService],
        networks: tuple[IpNetwork, ...],
        found: list[Diagnostic],
    ) -> None:
        self._table.by_server_name = any(owner.tls for owner in owners)
        passed: list[tuple[VirtualService, L4Rule, Block]] = []
        for owner in owners:
            self._note(1, owner.label, "considered")
            for rule in owner.tls:
                if not rule.targets and not rule.explicit_weights:
                    found.append(without_routes(owner, rule))
                    self._note(2, f"tls[{rule.index}]", "skipped: no route")
                    continue
                for block in rule.blocks:
                    reason = refusal(Dialect.SIDECAR, block, self._asking)
                    place = f"tls[{rule.index}].match[{block.index}]"
                    self._note(2, place, f"does not apply: {reason}" if reason else "applies to its sniHosts")
                    if not reason:
                        passed.append((owner, rule, block))
        for owner, rule, block in passed:
            outcome = self._rule(service, owner, rule, block.index, found)
            for name in block.sni_hosts:
                if not block.uses_subnets:
                    self._default(networks, outcome, name)
                for subnet in block.subnets:
                    self._table.keep(subnet.network, name, outcome)
        if passed:
            known = ", ".join(dict.fromkeys(name for _, _, block in passed for name in block.sni_hosts))
            missing = about(
                passed[0][0],
                "TLS-NO-SNI-MATCH",
                "info",
                ("spec", "tls"),
                f"a TLS connection with another server name is not sent to {service.hostname}",
                f"server names with a rule: {known}",
            )
            self._table.unknown = unknown_outcome(self._client.registry_only, [*found, missing])
            return
        self._note(1, service.hostname, "no tls rule applies: the service itself")
        default = fallthrough(self._index, self._client.view, service, self._port, diagnostics=found)
        self._default(networks, default)
