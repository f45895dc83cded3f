"""Tables made on demand and kept: a decision costs the same whatever the size of the configuration.

A table is made when the first connection asks for it and kept until the next snapshot, within a bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from waypoint.routes.gateway_table import GatewayTable, OpenListener
from waypoint.routes.index import RouteIndex
from waypoint.routes.matching import Dialect
from waypoint.routes.mesh_table import Client, MeshTable, unknown_outcome
from waypoint.routes.mesh_walk import build_mesh_table
from waypoint.routes.outcome import Outcome
from waypoint.routes.registry import Listening, protocol_kind
from waypoint.routes.trace import Trace
from waypoint.routes.waypoint_table import WaypointRules, build_waypoint_outcome
from ztun.mesh.document import Problem
from ztun.mesh.model import Service
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Connection, Decision, Diagnostic, Hop, HopKind, Router

MAX_TABLES = 16_384  # some 2 KiB each: 32 MiB at most; far above the service ports a proxy sees in practice

T = TypeVar("T")


class Cache:
    """Values by key; the oldest is dropped when there are too many."""

    def __init__(self, limit: int = MAX_TABLES) -> None:
        self._limit = limit
        self._values: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value for a key, made when it is missing."""
        value = self._values.get(key)
        if value is None:
            value = make()
            if len(self._values) >= self._limit:
                del self._values[next(iter(self._values))]
            self._values[key] = value
        return value  # type: ignore[return-value]  # each key has one kind of value


def labels_key(labels: Mapping[str, str]) -> Hashable:
    """Equal for equal labels."""
    return frozenset(labels.items())


class TableRouter:
    """A router over a ``RouteIndex``. Engines differ in the walk they choose per hop and in the dialect."""

    dialect = Dialect.SIDECAR

    def __init__(self, index: RouteIndex) -> None:
        self.index = index
        self._cache = Cache()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The documents that could not be read and are left out."""
        return self.index.problems

    def decide(
        self, connection: Connection, hop: Hop, rng: random.Random, *, trace: bool = False
    ) -> Decision:
        """See ``ztun.routing.Router``."""
        if not trace:
            return self._outcome(connection, hop, None).draw(rng)
        recorder = Trace()
        outcome = self._outcome(connection, hop, recorder)
        return outcome.draw_traced(rng, recorder.steps())

    def wants_server_name(self, connection: Connection, hop: Hop) -> bool:
        """See ``ztun.routing.Router``. A port that is not declared TLS is never waited on."""
        if hop.kind is HopKind.GATEWAY:
            opened = self._gateway(hop, None).listeners
            port = connection.destination_port
            found = opened.get((connection.destination_ip, port)) or opened.get(("", port))
            return found is not None and found.opened and found.tcp is None
        if not self._by_client(hop):
            return False
        listening = self._listening(connection, connection.source_namespace)
        if listening is None:
            return False
        port = connection.destination_port
        kinds = {protocol_kind(service.ports[port].protocol) for service in listening.services}
        if "tls" not in kinds:
            return False
        return self._mesh_table(connection, hop, listening, None).by_server_name

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """See ``ztun.routing.Router``."""
        return self.index.conversion_diagnostics

    def listeners(self, hop: Hop) -> Mapping[tuple[str, int], OpenListener]:
        """What a gateway proxy has to listen on, by (bind address, port); see ``OpenListener.opened``."""
        return self._gateway(hop, None).listeners

    def _by_client(self, hop: Hop) -> bool:
        """Whether the walk of the client's side answers for this hop."""
        return hop.kind is not HopKind.GATEWAY

    def _outcome(self, connection: Connection, hop: Hop, trace: Trace | None) -> Outcome:
        if hop.kind is HopKind.GATEWAY:
            return self._gateway(hop, trace).find(connection)
        by_client = self._by_client(hop)
        # A waypoint serves what is sent to it, wherever the service is visible.
        namespace = connection.source_namespace if by_client else None
        listening = self._listening(connection, namespace)
        address = connection.destination_host or connection.destination_ip
        place = f"{address}:{connection.destination_port}"
        if listening is None:
            if trace is not None:
                seen = "" if namespace is None else f" that namespace {namespace or '(unknown)'} sees"
                trace.add(0, place, f"no service{seen} is there")
            return unknown_outcome(hop.registry_only)
        if trace is not None:
            names = ", ".join(service.hostname for service in listening.services)
            trace.add(0, place, f"service {names}")
        if by_client:
            return self._mesh_table(connection, hop, listening, trace).find(connection)
        return self._waypoint(listening.services[0], connection.destination_port, hop, trace)

    def _listening(self, connection: Connection, namespace: str | None) -> Listening | None:
        ip, port = connection.destination_ip, connection.destination_port
        return self.index.registry.listening(ip, port, namespace, host=connection.destination_host)

    def _mesh_table(
        self, connection: Connection, hop: Hop, listening: Listening, trace: Trace | None
    ) -> MeshTable:
        namespace, labels = connection.source_namespace, connection.source_labels
        port = connection.destination_port

        def make() -> MeshTable:
            client = Client(namespace, labels, hop.registry_only)
            return build_mesh_table(self.index, listening, port, client, trace)

        if trace is not None:
            return make()
        place = tuple(service.key for service in listening.services)
        pod = listening.pod.uid if listening.pod else ""
        key = ("mesh", place, pod, port, namespace, labels_key(labels), hop.registry_only)
        return self._cache.get(key, make)

    def _gateway(self, hop: Hop, trace: Trace | None) -> GatewayTable:
        def make() -> GatewayTable:
            return GatewayTable(self.index, self.dialect, hop.namespace, hop.labels, trace)

        if trace is not None:
            return make()
        return self._cache.get(("gateway", hop.namespace, labels_key(hop.labels)), make)

    def _waypoint(self, service: Service, port: int, hop: Hop, trace: Trace | None) -> Outcome:
        def make() -> Outcome:
            rules = self.waypoint_rules()
            return build_waypoint_outcome(self.index, rules, service, port, hop.namespace, trace)

        if trace is not None:
            return make()
        return self._cache.get(("waypoint", service.key, port, hop.namespace), make)

    def waypoint_rules(self) -> WaypointRules:
        """How this engine reads rules at a waypoint."""
        return WaypointRules(self.dialect)


def index_for(snapshot: Snapshot, previous: Router | None) -> RouteIndex:
    """The index for a snapshot, taking over what the previous router compiled."""
    return RouteIndex(snapshot, previous.index if isinstance(previous, TableRouter) else None)
