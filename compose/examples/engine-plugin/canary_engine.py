"""A routing engine of a few lines: clients with the label ``canary: "true"`` reach the gray pods, others the rest."""

from __future__ import annotations

import random
from fractions import Fraction

from ztun.mesh.snapshot import Snapshot
from ztun.routing import (
    Action,
    Connection,
    Decision,
    Destination,
    DestinationStatus,
    Diagnostic,
    Hop,
    RouteEndpoint,
    Router,
    TraceStep,
)


class CanaryRouter:
    """Decides for one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def decide(
        self, connection: Connection, hop: Hop, rng: random.Random, *, trace: bool = False
    ) -> Decision:
        """Split the endpoints of the dialled service by client."""
        port, namespace = connection.destination_port, connection.source_namespace
        service = self._snapshot.service_by_vip("", connection.destination_ip, namespace)
        if service is None or port not in service.ports:
            return Decision(Action.PASSTHROUGH)
        canary = connection.source_labels.get("canary") == "true"
        endpoints = tuple(
            RouteEndpoint(one.workload, one.workload.addresses[0], one.ports[port])
            for one in self._snapshot.endpoints(service.key)
            if one.workload.addresses and (one.workload.labels.get("version") == "gray") == canary
        )
        status = DestinationStatus.OK if endpoints else DestinationStatus.NO_ENDPOINTS
        goal = Destination(service.hostname, port, Fraction(1), status, service=service, endpoints=endpoints)
        steps = (TraceStep(0, service.hostname, f"canary client: {canary}"),) if trace else ()
        action = Action.ROUTE if endpoints else Action.REJECT
        return Decision(action, service, None, (goal,), goal, trace=steps)

    def wants_server_name(self, connection: Connection, hop: Hop) -> bool:
        """Nothing in a ClientHello matters here."""
        return False

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """There is no configuration that could be wrong."""
        return ()


class CanaryEngine:
    """What the entry point names."""

    name = "canary"

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> CanaryRouter:
        """Nothing to compile."""
        return CanaryRouter(snapshot)
