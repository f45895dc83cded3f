"""The listeners of the local pods: opened, kept and closed as pods come and go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ztun.config import SOCKS5_PORT
from ztun.errors import ConfigError, RelayError
from ztun.mesh.model import TunnelProtocol
from ztun.net.listeners import ORDINARY, Listener, finish_all, listen
from ztun.proxy.captures import Captures
from ztun.proxy.entries import open_socks5
from ztun.proxy.resolving import open_dns
from ztun.telemetry.config_dump import ServedWorkload
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.proxy.inbound import Inbound
    from ztun.proxy.outbound import Outbound
    from ztun.proxy.passthrough import Passthrough
    from ztun.proxy.plane import Plane

RETRY_SECONDS = 5.0  # an address that is not on the machine yet may come; ztunnel retries its pods as often


@dataclass(slots=True)
class _Pod:
    workload: Workload
    servers: list[Listener] = field(default_factory=list)
    up: bool = False


class Pods:
    """Keeps one set of listeners per pod that this proxy serves."""

    def __init__(self, plane: Plane, outbound: Outbound, inbound: Inbound, passthrough: Passthrough) -> None:
        self._plane = plane
        self._outbound = outbound
        self._inbound = inbound
        self._redirected = Captures(plane, plane.home, outbound, passthrough, self._local)
        self._pods: dict[str, _Pod] = {}
        self._captures: list[Listener] = []
        self._retry_at = 0.0
        self._log = get_logger("proxy")

    def served(self) -> list[ServedWorkload]:
        """For the admin dump; safe on another thread."""
        return [ServedWorkload(pod.workload, pod.up) for pod in list(self._pods.values())]

    @property
    def pending(self) -> int:
        """How many pods have no listeners yet."""
        return sum(not pod.up for pod in self._pods.values())

    async def open_captures(self) -> None:
        """Listen for redirected traffic in the proxy's own network namespace. Raises :class:`ConfigError`."""
        self._captures = self._redirected.open(ORDINARY)
        if (dns := self._plane.settings.dns) is not None:
            await open_dns(self._plane, self._plane.home, dns, self._first, "the pod")

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Make the listeners fit a snapshot; pods that stay are not touched."""
        wanted = {one.uid: one for one in self._wanted(snapshot)}
        for uid, pod in list(self._pods.items()):
            now = wanted.get(uid)
            if (
                now is None
                or now.addresses != pod.workload.addresses
                or now.identity != pod.workload.identity
            ):
                self._close(uid, pod)
            else:
                pod.workload = now
        for uid, workload in wanted.items():
            if uid not in self._pods:
                self._pods[uid] = _Pod(workload)
            if not self._pods[uid].up:
                self._open(self._pods[uid])
        identities = {one.identity for one in wanted.values()}
        self._plane.store.retain(identities)
        self._plane.store.prefetch(identities)
        self._retry_at = self._plane.loop.time() + RETRY_SECONDS

    def retry_due(self, now: float) -> bool:
        """Whether pods without listeners should be tried again."""
        return now >= self._retry_at and self.pending > 0

    async def stop_accepting(self) -> None:
        """Close every listener; open connections go on."""
        finish_all(self._captures)
        finish_all(server for pod in self._pods.values() for server in pod.servers)

    # -- inside ----------------------------------------------------------------------------------------------

    def _wanted(self, snapshot: Snapshot) -> list[Workload]:
        settings = self._plane.settings
        local = snapshot.workloads_of_node(settings.node)
        if settings.mode == "sidecar":
            return [one for one in local if f"{one.namespace}/{one.name}" == settings.workload]
        return [
            one
            for one in local
            if one.tunnel_protocol is TunnelProtocol.HBONE and not one.native_tunnel and not one.host_network
        ]

    def _open(self, pod: _Pod) -> None:
        uid, plane = pod.workload.uid, self._plane
        opened: list[Listener] = []
        try:
            for ip in pod.workload.addresses:
                opened.append(
                    listen(
                        self._plane.poller,
                        ip,
                        plane.settings.hbone_port,
                        lambda sock, local, peer: self._inbound.accept(uid, sock, local, peer),
                        plane.settings.sockets,
                        purpose=f"HBONE to {pod.workload.namespace}/{pod.workload.name}",
                    )
                )
                if plane.settings.socks5:
                    opened.append(
                        open_socks5(
                            plane,
                            plane.home,
                            self._outbound,
                            (ip, SOCKS5_PORT),
                            lambda: plane.snapshot.workload_by_uid(uid),
                        )
                    )
        except ConfigError as error:
            for server in opened:
                server.close()
            self._log.warning(
                "pod cannot be served yet",
                workload=f"{pod.workload.namespace}/{pod.workload.name}",
                error=error,
            )
            return
        pod.servers = opened
        pod.up = True
        self._log.info("pod served", workload=f"{pod.workload.namespace}/{pod.workload.name}")

    def _close(self, uid: str, pod: _Pod) -> None:
        del self._pods[uid]
        for server in pod.servers:
            server.close()
        gone = RelayError("workload_gone", "the workload was removed from this node")
        # the connections first: a tunnel that is cut takes them along, and they would not know why
        self._plane.connections.cut_where(lambda one: one.local.uid == uid, gone)
        self._inbound.drop(uid, gone)
        self._log.info("pod no longer served", workload=f"{pod.workload.namespace}/{pod.workload.name}")

    def _first(self) -> Workload | None:
        """Whose queries are captured. Of several pods in one namespace nobody could tell who has asked."""
        return next((pod.workload for pod in self._pods.values()), None)

    def _local(self, ip: str) -> Workload | None:
        settings = self._plane.settings
        found = self._plane.snapshot.workload_by_address(settings.network, ip)
        return found if found is not None and found.uid in self._pods else None
