"""Routing at a gateway: one rule for a whole TCP server, chains by server name for TLS.

A port on which no server found a rule is not opened. On a TLS listener a server name without a chain is closed.
``sourceLabels``, ``sourceNamespace`` and ``destinationSubnets`` are not looked at (Istio), or disable the block
(ambient).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from waypoint.routes.chains import NameTable
from waypoint.routes.destinations import Viewpoint, rule_outcome
from waypoint.routes.findings import (
    about,
    ambient_findings,
    gateway_match_findings,
    ignored_at_gateway,
    once_per_object,
    without_routes,
)
from waypoint.routes.index import RouteIndex, in_order_for
from waypoint.routes.listeners import BoundServer, Listener, ListenerKind, TlsTreatment, merge, selects
from waypoint.routes.matching import Asking, Dialect, refusal
from waypoint.routes.model import L4Rule, RouteTarget, VirtualService
from waypoint.routes.names import host_matches
from waypoint.routes.outcome import Outcome
from waypoint.routes.trace import Trace
from ztun.routing import Action, Connection, Diagnostic

CLOSED = Action.REJECT
_Chain: TypeAlias = tuple[VirtualService, L4Rule, int | None]


@dataclass(slots=True)
class OpenListener:
    """A listener with its routes. ``opened`` is false when nothing could ever be routed."""

    listener: Listener
    tcp: Outcome | None
    names: NameTable[Outcome]
    servers: NameTable[BoundServer]
    """Which server, and so which certificate, a server name belongs to."""
    opened: bool
    diagnostics: tuple[Diagnostic, ...]


class GatewayTable:
    """All listeners of one gateway proxy, with their routes."""

    def __init__(
        self,
        index: RouteIndex,
        dialect: Dialect,
        namespace: str,
        labels: Mapping[str, str],
        trace: Trace | None = None,
    ) -> None:
        self._index = index
        self._dialect = dialect
        self._view = Viewpoint(namespace, labels, policies=dialect is not Dialect.AMBIENT)
        self._namespace = namespace
        self._trace = trace
        configs = [config for config in index.gateways if selects(config, namespace, labels)]
        for config in index.gateways:
            chosen = "selects this gateway" if config in configs else "selects other gateways"
            self._note(1, config.label, chosen)
        merged, self.conflicts = merge(configs)
        self.listeners = {key: self._open(listener) for key, listener in merged.items()}

    def find(self, connection: Connection) -> Outcome:
        """The outcome for one connection, by bind address, port and server name."""
        port = connection.destination_port
        opened = self.listeners.get((connection.destination_ip, port)) or self.listeners.get(("", port))
        if opened is None and not connection.destination_ip:
            opened = next((one for (_, number), one in self.listeners.items() if number == port), None)
        if opened is None:
            return Outcome(Action.NO_LISTENER, diagnostics=self.conflicts)
        if opened.listener.kind is ListenerKind.HTTP:
            return Outcome(Action.HTTP_LAYER, diagnostics=opened.diagnostics)
        if not opened.opened:
            return Outcome(Action.NO_LISTENER, diagnostics=opened.diagnostics)
        if opened.tcp is not None:
            return opened.tcp
        name = connection.server_name.lower()
        server = opened.servers.best(name)
        if server is not None and server.http:
            return Outcome(Action.HTTP_LAYER, diagnostics=opened.diagnostics)
        if server is not None and server.treatment is TlsTreatment.AUTO_PASSTHROUGH:
            return self._by_name(opened, server, name)
        found = opened.names.best(name)
        return self._closed(opened, name) if found is None else found

    def _note(self, depth: int, subject: str, outcome: str) -> None:
        if self._trace is not None:
            self._trace.add(depth, subject, outcome)

    def _open(self, listener: Listener) -> OpenListener:
        found = [*self.conflicts]
        chains: NameTable[_Chain] = NameTable()
        servers: NameTable[BoundServer] = NameTable()
        tcp: _Chain | None = None
        auto = False
        for bound in listener.servers:
            place = f"{bound.config.label} servers[{bound.server.index}]"
            self._note(1, place, f"{bound.server.protocol} {listener.bind or '*'}:{listener.port}")
            for _, host in bound.hosts:
                if servers.get(host) is None:
                    servers.set(host, bound)
            treatment = bound.treatment
            if listener.kind is ListenerKind.TCP:
                tcp = self._server_rule(bound, found)
            elif treatment is TlsTreatment.AUTO_PASSTHROUGH:
                auto = True
            elif treatment is TlsTreatment.PASSTHROUGH:
                self._passthrough(bound, chains, found)
            elif not bound.http:
                chain = self._server_rule(bound, found)
                for _, host in bound.hosts:
                    if chain is not None and chains.get(host) is None:
                        chains.set(host, chain)
        opened = tcp is not None or bool(chains) or auto or any(bound.http for bound in listener.servers)
        # Every outcome carries all findings of the listener, so it is made when they are complete.
        made: dict[tuple[int, str, int, int | None], Outcome] = {}

        def outcome(chain: _Chain) -> Outcome:
            owner, rule, block = chain
            key = (id(owner), rule.section, rule.index, block)
            if key not in made:
                made[key] = self._outcome(owner, rule, block, listener.port, found)
            return made[key]

        answer = outcome(tcp) if tcp is not None else None
        return OpenListener(
            listener, answer, chains.map(outcome), servers, opened, tuple(dict.fromkeys(found))
        )

    def _owners(self, bound: BoundServer, found: list[Diagnostic]) -> list[VirtualService]:
        """VirtualServices bound to the server's Gateway whose hosts intersect the server's, in scan order."""
        owners = []
        for owner in in_order_for(self._namespace, self._index.bound_to(bound.config.key)):
            if intersects(bound, owner):
                owners.append(owner)
                continue
            hosts = ", ".join(host for _, host in bound.hosts)
            message = f"no host of it is among those of {bound.config.label} ({hosts})"
            found.append(about(owner, "IST0132", "warning", ("spec", "hosts"), message))
            self._note(2, owner.label, f"not considered: {message}")
        for owner in owners:
            found += self._about(owner, bound)
        return owners

    def _about(self, owner: VirtualService, bound: BoundServer) -> list[Diagnostic]:
        found: list[Diagnostic] = []
        for rule in (*owner.tcp, *owner.tls):
            found += gateway_match_findings(owner, rule)
            found += ignored_at_gateway(owner, rule, bound.config.key)
            if self._dialect is Dialect.AMBIENT:
                found += ambient_findings(owner, rule)
        if bound.treatment is TlsTreatment.NONE and owner.http_rules and not owner.tcp:
            message = f"http routes are ignored on TCP port {bound.server.port} of {bound.config.label}"
            found.append(about(owner, "PROTO-HTTP-ON-TCP", "error", ("spec", "http"), message, "use tcp"))
        return list(once_per_object(iter(found)))

    def _server_rule(self, bound: BoundServer, found: list[Diagnostic]) -> _Chain | None:
        """The first rule of the first VirtualService that has a passing one; it owns the whole server."""
        asking = Asking(bound.config.key, bound.server.port)
        winner: _Chain | None = None
        for owner in self._owners(bound, found):
            self._note(2, owner.label, "considered")
            for rule in owner.tcp:
                taken = self._takes(owner, rule, asking, found)
                if taken is None:
                    continue
                if winner is None:
                    winner = (owner, rule, taken[0])
                elif winner[0] is not owner and set(winner[0].hosts) != set(owner.hosts):
                    message = f"raw TCP carries no host name; only {winner[0].key} is used on this server"
                    hint = "use TLS with server names, or another port"
                    found.append(
                        about(owner, "TCP-HOST-ROUTING", "warning", ("spec", "hosts"), message, hint)
                    )
                break
        return winner

    def _takes(
        self, owner: VirtualService, rule: L4Rule, asking: Asking, found: list[Diagnostic]
    ) -> tuple[int | None] | None:
        place = f"{rule.section}[{rule.index}]"
        if not rule.targets and not rule.explicit_weights:
            found.append(without_routes(owner, rule))
            self._note(3, place, "skipped: no route")
            return None
        if not rule.blocks:
            self._note(3, place, "has no match: applies")
            return (None,)
        for block in rule.blocks:
            reason = refusal(self._block_dialect, block, asking)
            text = f"does not apply: {reason}" if reason else "applies"
            self._note(3, f"{place}.match[{block.index}]", text)
            if not reason:
                return (block.index,)
        return None

    @property
    def _block_dialect(self) -> Dialect:
        return Dialect.AMBIENT if self._dialect is Dialect.AMBIENT else Dialect.ISTIO_GATEWAY

    def _passthrough(self, bound: BoundServer, chains: NameTable[_Chain], found: list[Diagnostic]) -> None:
        """A chain for each server name of each passing ``tls`` block that the server's hosts admit."""
        asking = Asking(bound.config.key, bound.server.port)
        for owner in self._owners(bound, found):
            self._note(2, owner.label, "considered")
            for rule in owner.tls:
                if not rule.targets and not rule.explicit_weights:
                    found.append(without_routes(owner, rule))
                    continue
                for block in rule.blocks:
                    reason = refusal(self._block_dialect, block, asking)
                    place = f"tls[{rule.index}].match[{block.index}]"
                    self._note(3, place, f"does not apply: {reason}" if reason else "applies to its sniHosts")
                    if reason:
                        continue
                    for name in block.sni_hosts:
                        if chains.get(name) is not None:
                            path = ("spec", "tls", rule.index, "match", block.index, "sniHosts")
                            message = (
                                f"{name} already has a route on port {bound.server.port}; this is not used"
                            )
                            found.append(about(owner, "GW-DUP-SNI", "warning", path, message))
                            continue
                        chains.set(name, (owner, rule, block.index))

    def _outcome(
        self, owner: VirtualService, rule: L4Rule, block: int | None, port: int, found: list[Diagnostic]
    ) -> Outcome:
        return rule_outcome(
            self._index,
            self._view,
            owner,
            rule,
            block,
            port,
            service=None,
            diagnostics=found,
            trace=self._trace,
        )

    def _by_name(self, opened: OpenListener, bound: BoundServer, name: str) -> Outcome:
        """AUTO_PASSTHROUGH: the server name ``outbound_.<port>_.<subset>_.<host>`` is the destination."""
        parts = name.split("_.", 3)
        if len(parts) != 4 or parts[0] != "outbound" or not parts[1].isdecimal() or len(parts[1]) > 5:
            return self._closed(opened, name)
        target = RouteTarget(parts[3], int(parts[1]), parts[2])
        rule = L4Rule("tls", 0, (), (target,))
        owner = VirtualService(
            namespace=bound.config.namespace,
            name=bound.config.name,
            hosts=("*",),
            gateways=(bound.config.key,),
            export_to=(),
            tcp=(),
            tls=(rule,),
            http_rules=0,
            age=bound.config.age,
            document=bound.config.document,
            kind="Gateway",
        )
        return self._outcome(owner, rule, None, bound.server.port, [*opened.diagnostics])

    def _closed(self, opened: OpenListener, name: str) -> Outcome:
        known = ", ".join(opened.names.patterns()) or "none"
        config = opened.listener.servers[0].config
        missing = Diagnostic(
            "TLS-NO-SNI-MATCH",
            "info",
            config.label,
            ("spec", "servers", opened.listener.servers[0].server.index),
            f"no route on port {opened.listener.port} for server name {name or '(none)'}: closed",
            f"server names with a route: {known}",
            config.document,
        )
        return Outcome(CLOSED, diagnostics=(*opened.diagnostics, missing))


def intersects(bound: BoundServer, owner: VirtualService) -> bool:
    """Whether a VirtualService may attach to a server: a host in common, its namespace admitted."""
    for namespace, host in bound.hosts:
        admitted = bound.config.namespace if namespace == "." else namespace
        if admitted not in ("*", owner.namespace):
            continue
        if any(host_matches(host, other) for other in owner.hosts):
            return True
    return False
