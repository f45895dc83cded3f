"""The pod of this process: where it listens, and for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.errors import ConfigError, RelayError
from ztun.mesh.model import AppTunnelProtocol, Workload
from ztun.net.listeners import Listener, finish_all, listen
from ztun.telemetry.config_dump import ServedWorkload
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from waypoint.server.requests import WaypointRequests
    from waypoint.server.sandwich import Sandwich
    from ztun.proxy.plane import Plane

RETRY_SECONDS = 5.0  # an address that is not on the machine yet may come, as for the pods of a node proxy


class OwnPod:
    """Keeps the listeners of one pod: HBONE, or PROXY protocol where a node proxy ends the tunnels."""

    def __init__(self, plane: Plane, requests: WaypointRequests, sandwich: Sandwich) -> None:
        self._plane = plane
        self._requests = requests
        self._sandwich = sandwich
        self._workload: Workload | None = None
        self._servers: list[Listener] = []
        self._retry_at = 0.0
        self._log = get_logger("waypoint")

    @property
    def up(self) -> bool:
        """Whether it listens."""
        return bool(self._servers)

    def served(self) -> list[ServedWorkload]:
        """For the admin dump; safe on another thread."""
        workload = self._workload
        return [ServedWorkload(workload, self.up)] if workload is not None else []

    async def become(self, workload: Workload | None) -> None:
        """Listen as this pod. Listeners stay when nothing of them has changed."""
        before = self._workload
        if before is not None and (workload is None or _place(workload) != _place(before)):
            self._leave(before)
        self._workload = workload
        if workload is not None:
            if not self._servers:
                self._listen(workload)
            self._plane.store.retain({workload.identity})
            self._plane.store.prefetch({workload.identity})
        self._retry_at = self._plane.loop.time() + RETRY_SECONDS

    def retry_due(self, now: float) -> bool:
        """Whether listeners that could not be opened should be tried again."""
        return not self.up and now >= self._retry_at

    async def stop_accepting(self) -> None:
        """Close the listeners; open connections go on."""
        finish_all(self._servers)

    # -- inside ----------------------------------------------------------------------------------------------

    def _listen(self, workload: Workload) -> None:
        name = f"{workload.namespace}/{workload.name}"
        opened: list[Listener] = []
        tunnel = workload.application_tunnel
        try:
            if tunnel is not None and tunnel.protocol is not AppTunnelProtocol.PROXY:
                raise ConfigError(
                    "inbound_binding",
                    f"the waypoint's inbound binding is {tunnel.protocol.value}, which tells no destination",
                    hint="use ambient.istio.io/waypoint-inbound-binding: PROXY/<port>, or remove it",
                )
            for ip in workload.addresses:
                server = self._listen_on(workload, ip)
                opened.append(server)
        except ConfigError as error:
            for server in opened:
                server.close()
            self._log.warning("the waypoint cannot listen yet", workload=name, error=error)
            return
        self._servers = opened
        self._log.info("waypoint listens", workload=name)

    def _listen_on(self, workload: Workload, ip: str) -> Listener:
        plane, uid, tunnel = self._plane, workload.uid, workload.application_tunnel
        if tunnel is not None:
            return listen(
                self._plane.poller,
                ip,
                tunnel.port,
                lambda sock, local, peer: self._sandwich.accept(sock, uid, local, peer),
                plane.settings.sockets,
                purpose="PROXY protocol from the node proxy",
            )
        return listen(
            self._plane.poller,
            ip,
            plane.settings.hbone_port,
            lambda sock, local, peer: self._requests.accept(uid, sock, local, peer),
            plane.settings.sockets,
            purpose="HBONE to the waypoint",
        )

    def _leave(self, workload: Workload) -> None:
        for server in self._servers:
            server.close()
        self._servers = []
        gone = RelayError("workload_gone", "the pod of this waypoint was removed or changed its address")
        # the connections first: a tunnel that is cut takes them along, and they would not know why
        self._plane.connections.cut_where(lambda one: one.local.uid == workload.uid, gone)
        self._requests.drop(workload.uid, gone)
        self._log.info("waypoint no longer listens", workload=f"{workload.namespace}/{workload.name}")


def _place(workload: Workload) -> tuple[object, ...]:
    """What a listener depends on."""
    return workload.uid, workload.addresses, workload.identity, workload.application_tunnel
