"""The gateway as a role of the runtime: listeners from Gateway objects, kept in step with the configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from waypoint.gateway.ingress import Ingress
from waypoint.gateway.listeners import Listeners
from waypoint.gateway.places import plan_places
from waypoint.gateway.termination import Terminations
from waypoint.gateway.view import View
from ztun.errors import ConfigError
from ztun.mesh.document import Problem
from ztun.proxy.pods import RETRY_SECONDS
from ztun.proxy.routers import CompiledRouter
from ztun.telemetry.config_dump import ServedWorkload
from ztun.telemetry.families import Gauge
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from certs.bundle import TrustBundle
    from waypoint.gateway.view import Name
    from waypoint.routes.gateway_table import OpenListener
    from ztun.errors import ZtunError
    from ztun.mesh.snapshot import Snapshot
    from ztun.proxy.plane import Plane
    from ztun.routing import Hop, RoutingEngine


@runtime_checkable
class GatewayRouter(Protocol):
    """What a gateway needs of a router besides its decisions."""

    def listeners(self, hop: Hop) -> Mapping[tuple[str, int], OpenListener]:
        """What to listen on, by (bind address, port)."""


class GatewayRole:
    """See the module."""

    def __init__(self, plane: Plane, name: Name, engine: RoutingEngine) -> None:
        self._plane = plane
        self._name = name
        self._routers = CompiledRouter(engine, plane.metrics)
        self._ingress = Ingress(plane, self._routers)
        self._listeners = Listeners(plane, self._ingress.accept)
        self._terminations = Terminations(plane)
        self._laid_out = Gauge(
            "ztun_gateway_generation",
            "The configuration that the gateway's listeners are laid out for (unstable)",
        )
        self._listening = Gauge(
            "ztun_gateway_listeners", "Listeners of the gateway by state: open, failed (unstable)", ("state",)
        )
        plane.metrics.add(self._laid_out)
        plane.metrics.add(self._listening)
        self._lock = asyncio.Lock()
        self._retry_at = 0.0
        self._reported: frozenset[tuple[str, ...]] = frozenset()
        self._log = get_logger("gateway")

    @property
    def pending(self) -> int:
        """Not ready without a pod of its own, and while nothing of what was asked for could be opened.

        One listener that cannot be opened does not take the others out of service.
        """
        if self._ingress.view is None:
            return 1
        return self._listeners.failed if not self._listeners.open else 0

    def served(self) -> Sequence[ServedWorkload]:
        """The gateway's own pod."""
        view = self._ingress.view
        return [ServedWorkload(view.workload, not self.pending)] if view is not None else []

    async def open(self) -> None:
        """Compile the routes. Raises :class:`ConfigError` when the engine cannot serve a gateway."""
        self._routers.load(self._plane.snapshot)
        if not isinstance(self._routers.current, GatewayRouter):
            raise ConfigError(
                "engine_no_gateway",
                f"routing engine {self._routers.engine.name!r} does not say what a gateway listens on",
                hint="its routers need a method listeners(hop), as those of ambient and sidecar have",
            )

    async def run(self) -> None:
        """Nothing goes on beside the connections."""

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Follow a snapshot: rules, then listeners."""
        async with self._lock:
            await self._routers.recompile(snapshot)
            self._retry_at = self._plane.loop.time() + RETRY_SECONDS
            workload = self._name.workload(snapshot)
            if workload is None:
                self._report([self._unknown()])
                return
            router = self._routers.current
            assert isinstance(router, GatewayRouter)
            hop = self._name.hop(workload)
            listeners = router.listeners(hop)
            plan = plan_places(listeners, workload)
            terminators, unusable = await asyncio.to_thread(
                self._terminations.fit, snapshot, workload, listeners.values()
            )
            found = [one for opened in listeners.values() for one in opened.diagnostics]
            self._report([one.problem() for one in (*found, *plan.left_out, *unusable)])
            self._routers.told(found)
            self._plane.store.retain({workload.identity})
            self._plane.store.prefetch({workload.identity})
            self._ingress.view = View(workload, hop, plan.places, terminators)
            self._listeners.fit(plan.places)
            self._listening.set(self._listeners.open, "open")
            self._listening.set(self._listeners.failed, "failed")
            self._laid_out.set(snapshot.generation)

    def retry_due(self, now: float) -> bool:
        """Whether listeners that could not be opened should be tried again, or certificate files have changed."""
        if self._terminations.files_changed():
            return True
        return now >= self._retry_at and (self._listeners.failed > 0 or self._ingress.view is None)

    def tick(self, now: float) -> None:
        """Nothing of its own: a gateway accepts no tunnels."""

    def cut_revoked(self, bundle: TrustBundle) -> int:
        """Nothing of its own."""
        return 0

    async def stop_accepting(self) -> None:
        """Close every listener."""
        await self._listeners.close()

    def drain(self) -> None:
        """Nobody to tell: TCP has no way to ask a client to move on."""

    def close(self, failure: ZtunError) -> None:
        """Nothing of its own."""

    async def closed(self) -> None:
        """Nothing of its own."""

    def _unknown(self) -> Problem:
        message = "no pod and no Deployment of the mesh has this name; listeners stay as they are"
        return Problem(
            None,
            f"gateway {self._name}",
            "",
            message,
            "is its Pod among the documents?",
            "GW-UNKNOWN",
            "warning",
        )

    def _report(self, found: Sequence[Problem]) -> None:
        """Log what is new; what was there before has been said, also if its lines have moved."""
        reported = {(one.code, one.object, one.path, one.message): one for one in found}
        for key, one in reported.items():
            if key not in self._reported:
                write = {"error": self._log.error, "warning": self._log.warning}.get(
                    one.severity, self._log.info
                )
                write(str(one), code=one.code)
        self._reported = frozenset(reported)
