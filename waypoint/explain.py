"""One decision, rule by rule: the same call that the data path makes, asked to write down its reasoning."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from waypoint.analysis.ambient import waypoint_namespace
from waypoint.analysis.configuration import Configuration, configuration_of
from waypoint.analysis.stand_ins import with_stand_ins
from waypoint.analysis.suggestion import did_you_mean
from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.istio_waypoint import IstioWaypointEngine
from waypoint.engines.router import TableRouter
from waypoint.engines.sidecar import SidecarEngine
from waypoint.routes.gateway_api import GATEWAY_NAME_LABEL
from waypoint.routes.names import is_ip
from ztun.errors import ConfigError
from ztun.mesh.address import AddressError, parse_host_port
from ztun.mesh.model import Service, Workload, canonical_ip
from ztun.routing import (
    MESH_GATEWAY,
    Action,
    Connection,
    Decision,
    Diagnostic,
    Hop,
    HopKind,
    Router,
    RoutingEngine,
    load_engine,
)

BOTH = "both"
OWN_ENGINES: Mapping[str, type[RoutingEngine]] = MappingProxyType(
    {engine.name: engine for engine in (AmbientEngine, SidecarEngine, IstioWaypointEngine)}
)
WAYPOINT_ENGINES = ("ambient", "istio-waypoint")


@dataclass(frozen=True, slots=True)
class Question:
    """Who connects to what. ``source`` and ``via`` are ``NAMESPACE/NAME``; ``target`` is ``HOST:PORT``."""

    target: str
    source: str = ""
    via: str = ""
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of one engine. ``notes`` say what was assumed."""

    engine: str
    hop: Hop
    connection: Connection
    decision: Decision
    client: Workload | None = None
    notes: tuple[str, ...] = ()
    hints: tuple[Diagnostic, ...] = field(default=())


def explain(
    configuration: Configuration, question: Question, engines: Sequence[str], rng_seed: int = 0
) -> list[Explanation]:
    """Ask every engine the same question; all draw from the same state of the random generator.

    Raises ``ConfigError`` when the client, the destination, the gateway or an engine is not known.
    """
    documents, added = with_stand_ins(configuration.documents)
    notes: tuple[str, ...] = ()
    if added:
        configuration = configuration_of(documents)
        notes = ("pods or addresses are not in these files; stand-ins from 240.240.0.0/15 are used",)
    asker = _Asker(configuration, question)
    return [asker.ask(name, random.Random(rng_seed), notes) for name in engines]


def engine_named(name: str) -> RoutingEngine:
    """One of this package's engines, or an installed plug-in; raises ``ConfigError``."""
    own = OWN_ENGINES.get(name)
    return own() if own is not None else load_engine(name)


class _Asker:
    def __init__(self, configuration: Configuration, question: Question) -> None:
        self._snapshot = configuration.snapshot
        self._index = configuration.index
        self._question = question
        try:
            target = parse_host_port(question.target)
        except AddressError as error:
            hint = "write HOST:PORT"
            raise ConfigError("bad_target", f"--to {question.target}: {error}", hint=hint) from error
        self._host, self._port = target.host, target.port
        self._client = self._workload(question.source) if question.source else None

    def ask(self, name: str, rng: random.Random, notes: tuple[str, ...]) -> Explanation:
        engine = engine_named(name)
        router = engine.router(self._snapshot)
        service: Service | None = None
        found = list(notes)
        if self._question.via:
            hop = self._gateway(self._question.via)
            connection = Connection("", self._port, server_name=self._question.server_name)
        else:
            address, service = self._destination()
            client = self._client
            connection = Connection(
                destination_ip=address,
                destination_port=self._port,
                source_ip=client.addresses[0] if client and client.addresses else "",
                source_namespace=client.namespace if client else "",
                source_labels=client.labels if client else {},
                protocol="tls" if self._question.server_name else "tcp",
                server_name=self._question.server_name,
            )
            hop = self._hop(name, service, found)
        connection = self._with_server_name(router, connection, hop, service, found)
        decision = router.decide(connection, hop, rng, trace=True)
        hints = self._hints(decision, service, hop) if isinstance(router, TableRouter) else ()
        return Explanation(name, hop, connection, decision, self._client, tuple(found), hints)

    def _with_server_name(
        self, router: Router, connection: Connection, hop: Hop, service: Service | None, notes: list[str]
    ) -> Connection:
        """Where rules go by server name and none was given: the one a TLS client would send for this host."""
        if connection.server_name or is_ip(self._host) or not router.wants_server_name(connection, hop):
            return connection
        name = service.hostname if service is not None and "." not in self._host else self._host
        notes.append(f"the client is taken to speak TLS with server name {name} (--sni)")
        return replace(connection, protocol="tls", server_name=name)

    def _workload(self, text: str) -> Workload:
        """The client: a pod by its name, or any pod of the workload of that name."""
        namespace, slash, name = text.partition("/")
        if not slash:
            namespace, name = "default", text
        found = self._snapshot.workload_named(namespace, name)
        if found is not None:
            return found
        for workload in sorted(self._snapshot.workloads.values(), key=lambda one: one.uid):
            if workload.namespace == namespace and name in (workload.workload_name, workload.canonical_name):
                return workload
        known = {
            f"{one.namespace}/{one.workload_name or one.name}" for one in self._snapshot.workloads.values()
        }
        hint = (
            did_you_mean(f"{namespace}/{name}", sorted(known))
            or f"workloads: {', '.join(sorted(known)[:10])}"
        )
        raise ConfigError("unknown_workload", f"no workload is called {namespace}/{name}", hint=hint)

    def _destination(self) -> tuple[str, Service | None]:
        """The address that the client would dial, and the service it belongs to."""
        namespace = self._client.namespace if self._client else "default"
        if is_ip(self._host):
            ip = canonical_ip(self._host)
            listening = self._index.registry.listening(ip, self._port, namespace)
            return ip, listening.services[0] if listening else None
        domain = self._snapshot.cluster_domain
        candidates = (
            self._host,
            f"{self._host}.{namespace}.svc.{domain}",
            f"{self._host}.svc.{domain}",
            f"{self._host}.{domain}",
        )
        for name in candidates:
            service = self._index.registry.by_host(name, namespace)
            if service is None:
                continue
            address = next((vip.ip for vip in service.vips), "")
            if not address:
                endpoints = self._index.registry.endpoints(service, self._port)
                address = endpoints[0].ip if endpoints else ""
            if not address:
                hint = "give an address with --to IP:PORT"
                raise ConfigError("no_address", f"{service.hostname} has no address to dial", hint=hint)
            return address, service
        hint = did_you_mean(self._host, self._index.registry.hostnames())
        raise ConfigError("unknown_host", f"namespace {namespace} knows no service {self._host}", hint=hint)

    def _gateway(self, text: str) -> Hop:
        namespace, _, name = text.rpartition("/")
        key = f"{namespace or 'default'}/{name}"
        for config in self._index.gateways:
            if config.key == key or config.key.partition("#")[0] == key:
                return Hop(HopKind.GATEWAY, config.namespace, name, config.selector)
        for workload in self._snapshot.workloads.values():
            names = (workload.name, workload.workload_name, workload.labels.get(GATEWAY_NAME_LABEL))
            if workload.namespace == (namespace or "default") and name in names:
                return Hop(HopKind.GATEWAY, workload.namespace, name, workload.labels)
        known = sorted({config.key for config in self._index.gateways})
        hint = did_you_mean(key, known) or f"gateways: {', '.join(known) or 'none'}"
        raise ConfigError("unknown_gateway", f"no gateway is called {key}", hint=hint)

    def _hop(self, engine: str, service: Service | None, notes: list[str]) -> Hop:
        if engine not in WAYPOINT_ENGINES:
            return Hop(HopKind.CLIENT, self._client.namespace if self._client else "default")
        namespace = waypoint_namespace(service.waypoint) if service else None
        if not namespace:
            namespace = service.namespace if service else "default"
            if service is not None and service.waypoint is None:
                notes.append(
                    f"no waypoint serves {service.hostname}; this is what one in {namespace} would do"
                )
        return Hop(HopKind.WAYPOINT, namespace)

    def _hints(self, decision: Decision, service: Service | None, hop: Hop) -> tuple[Diagnostic, ...]:
        found: list[Diagnostic] = []
        if service is None:
            return ()
        if hop.kind is HopKind.WAYPOINT and service.waypoint is None:
            label = f"Service {service.namespace}/{service.name}"
            message = "ambient clients reach it without a waypoint: no rule is applied"
            hint = "create a waypoint and label the service with istio.io/use-waypoint"
            found.append(Diagnostic("AMB-NO-WAYPOINT", "error", label, (), message, hint))
        if decision.action is Action.FALLTHROUGH:
            for owner in self._index.candidates(service.hostname):
                if MESH_GATEWAY in owner.gateways:
                    continue
                message = f"it is bound to {', '.join(owner.gateways)}; this connection comes from the mesh"
                hint = "dial the gateway (--via), or add mesh to spec.gateways"
                found.append(
                    Diagnostic(
                        "HOP-MISMATCH",
                        "info",
                        owner.label,
                        ("spec", "gateways"),
                        message,
                        hint,
                        owner.document,
                    )
                )
        return tuple(found)
