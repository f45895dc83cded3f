"""The node proxy: a runtime whose role is to serve the pods of one node, or one pod in sidecar mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.net.listeners import finish_all
from ztun.proxy.entries import open_forward
from ztun.proxy.inbound import Inbound
from ztun.proxy.outbound import Outbound
from ztun.proxy.passthrough import Passthrough
from ztun.proxy.pods import Pods
from ztun.proxy.process import run_process
from ztun.proxy.routers import CompiledRouter
from ztun.proxy.runtime import Runtime
from ztun.proxy.sidecar import SidecarOutbound
from ztun.routing import load_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.bundle import TrustBundle
    from ztun.config import ProxySettings
    from ztun.errors import ZtunError
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.listeners import Listener
    from ztun.proxy.inpod import InpodPods
    from ztun.proxy.plane import Plane
    from ztun.telemetry.config_dump import ServedWorkload


def run(settings: ProxySettings) -> int:
    """Run a node proxy until it is told to stop; gives the exit status. Raises :class:`ConfigError` at start."""
    return run_process(lambda: Runtime(settings, NodeRole).run())


class NodeRole:
    """The listeners of the local pods, and the ways in that need no capture."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._inbound = Inbound(plane)
        self._routers: CompiledRouter | None = None
        if plane.settings.mode == "sidecar":
            self._routers = CompiledRouter(load_engine(plane.settings.engine), plane.metrics)
            self._outbound: Outbound = SidecarOutbound(plane, self._routers)
        else:
            self._outbound = Outbound(plane)
        self._pods = Pods(plane, self._outbound, self._inbound, Passthrough(plane))
        self._inpod: InpodPods | None = None
        if plane.settings.inpod is not None:
            from ztun.proxy.inpod import InpodPods  # with Protocol Buffers, which nobody else needs

            self._inpod = InpodPods(plane, plane.settings.inpod)
        self._forwards: list[Listener] = []

    @property
    def pending(self) -> int:
        """How many pods have no listeners yet; in in-pod mode readiness counts those."""
        return self._pods.pending

    def served(self) -> Sequence[ServedWorkload]:
        """The local pods."""
        return self._inpod.served() if self._inpod is not None else self._pods.served()

    async def open(self) -> None:
        """Captures and forwards, in sidecar mode after the rules were compiled."""
        if self._routers is not None:
            self._routers.load(self._plane.snapshot)
        if self._plane.settings.capture:
            await self._pods.open_captures()
        if self._inpod is not None:
            await self._inpod.open()
        for forward in self._plane.settings.forwards:
            self._forwards.append(open_forward(self._plane, self._outbound, forward))

    async def run(self) -> None:
        """Follow the node agent in in-pod mode. Raises :class:`ZdsError` when it makes no sense."""
        if self._inpod is not None:
            await self._inpod.run()

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Open and close the listeners of pods that came and went, and follow the rules."""
        if self._inpod is not None:
            self._inpod.reconcile(snapshot)
        else:
            await self._pods.reconcile(snapshot)
        if self._routers is not None:
            await self._routers.recompile(snapshot)

    def retry_due(self, now: float) -> bool:
        """Whether pods without listeners should be tried again."""
        return self._pods.retry_due(now)

    def tick(self, now: float) -> None:
        """Keepalive of the accepted tunnels."""
        for inbound in self._inbounds():
            inbound.tick(now)

    def cut_revoked(self, bundle: TrustBundle) -> int:
        """Close the tunnels of peers that were revoked."""
        return sum(inbound.cut_revoked(bundle) for inbound in self._inbounds())

    async def stop_accepting(self) -> None:
        """Close every listener."""
        finish_all(self._forwards)
        await self._pods.stop_accepting()
        for site in self._plane.sites:
            if site.dns is not None:
                site.dns.finish()
        if self._inpod is not None:
            await self._inpod.stop_accepting()

    def drain(self) -> None:
        """Ask the peers of accepted tunnels to move on."""
        for inbound in self._inbounds():
            inbound.drain()

    def close(self, failure: ZtunError) -> None:
        """Cut the accepted tunnels."""
        for inbound in self._inbounds():
            inbound.close(failure)

    async def closed(self) -> None:
        """Wait for the last accepted tunnel."""
        for inbound in self._inbounds():
            await inbound.closed()

    def _inbounds(self) -> list[Inbound]:
        """Those who accept tunnels."""
        return [self._inbound, *(self._inpod.inbounds() if self._inpod is not None else ())]
