"""Plaintext that was captured on its way to a local pod: judged without an identity, then delivered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztun.errors import CaptureError, PolicyDenied, RelayError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.lookup import OWN_PORTS
from ztun.mesh.model import join_host_port
from ztun.net.relay import Relay
from ztun.proxy.application import ApplicationDial
from ztun.proxy.connections import LiveConnection
from ztun.proxy.outbound import wait_for_workload
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site


class Passthrough:
    """Serves plaintext connections to local pods."""

    def __init__(
        self, plane: Plane, site: Site | None = None, find: Callable[[str], Workload | None] | None = None
    ) -> None:
        """``find`` gives the local workload that takes connections to an address."""
        self._plane = plane
        self._site = site or plane.home
        self._find = find or self._of_this_node
        self._log = get_logger("proxy::inbound")

    async def serve(self, client: AppSocket, source: tuple[str, int], destination: tuple[str, int]) -> None:
        """Carry one connection to its original ``destination`` (ip, port), if policy allows it."""
        plane = self._plane
        started = plane.loop.time()
        texts = (join_host_port(*source), join_host_port(*destination))
        connection: LiveConnection | None = None
        try:
            local = await self._local(destination)
            self._site.check_room()
            connection = self._live(local, source, destination, texts, started)
            plane.connections.opened(connection)
            judged = plane.snapshot
            self._authorize(local, connection)
            dial = ApplicationDial(plane, self._site, destination, source[0])
            if not dial.connected:
                await dial.wait()
            app = dial.take()
            if plane.snapshot is not judged:
                try:
                    self._authorize(local, connection)
                except PolicyDenied:
                    app.abort(ErrorCode.CANCEL)
                    raise
        except ZtunError as error:
            if connection is not None:
                plane.connections.finished(connection, error)
            else:
                plane.connections.refused("inbound", *texts, error)
            client.abort(ErrorCode.CONNECT_ERROR)
            return
        except asyncio.CancelledError:
            shutdown = RelayError("shutdown", "the pod or the proxy is going")
            if connection is not None:
                plane.connections.finished(connection, shutdown)
            client.abort(ErrorCode.CONNECT_ERROR)
            raise
        live = connection
        live.relay = Relay(client, app, lambda error: plane.connections.finished(live, error))
        live.relay.start()

    async def _local(self, destination: tuple[str, int]) -> Workload:
        ip, port = destination
        if port in OWN_PORTS:
            raise CaptureError(
                "self_call",
                "attempted recursive call to ourselves",
                hint="the original destination is the proxy's own port: is the traffic redirected by the kernel?",
            )
        return await wait_for_workload(self._plane, lambda: self._find(ip), ip)

    def _of_this_node(self, ip: str) -> Workload | None:
        settings = self._plane.settings
        found = self._plane.snapshot.workload_by_address(settings.network, ip)
        return found if found is not None and found.node == settings.node else None

    def _authorize(self, local: Workload, connection: LiveConnection) -> None:
        assert connection.attempt is not None
        verdict = authorize(self._plane.snapshot.policies_for(local), connection.attempt)
        for policy in verdict.dry_run:
            self._log.info("dry-run policy matched", policy=policy, peer=connection.source_addr)
        if not verdict.allowed:
            raise PolicyDenied(
                "policy_rejection",
                f"connection closed due to policy rejection: {verdict.reason}",
                hint="plaintext has no identity; is the client outside the mesh, and mTLS required here?",
            )

    def _live(
        self,
        local: Workload,
        source: tuple[str, int],
        destination: tuple[str, int],
        texts: tuple[str, str],
        started: float,
    ) -> LiveConnection:
        plane = self._plane
        client = plane.snapshot.workload_by_address(plane.settings.network, source[0])
        service = next(
            (key for key, ports in local.services.items() if destination[1] in ports.values()), None
        )
        return LiveConnection(
            direction="inbound",
            local=local,
            source_addr=texts[0],
            original_destination=texts[1],
            actual_destination=texts[1],
            started=started,
            attempt=Attempt(source[0], None, *destination),
            site=self._site,
            labels=TrafficLabels(
                "destination",
                client,
                local,
                plane.snapshot.services.get(service) if service is not None else None,
            ),
        )
