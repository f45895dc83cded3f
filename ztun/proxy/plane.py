"""What all parts of a proxy share: the state of the mesh, certificates, tunnels, telemetry."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from certs.context import TlsContexts
from certs.errors import CertError
from certs.peer import PeerExpectation
from ztun.errors import IdentityError, ZtunError
from ztun.hbone.guard import Abuse
from ztun.mesh.baggage import encode_baggage
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.buffers import LoopBuffers
from ztun.net.dial import Dialled, connect
from ztun.net.pool import PoolKey, TunnelPool
from ztun.net.tunnel import Tunnel, dial_tunnel
from ztun.proxy.connections import Connections
from ztun.sources.collection import let_go
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from certs.spiffe import SpiffeId
    from certs.store import CertificateStore, WorkloadCertificate
    from ztun.config import ProxySettings
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.dial import SocketOptions
    from ztun.telemetry.access_log import AccessLog
    from ztun.telemetry.metrics import Metrics


class Plane:
    """The parts that a connection needs, whichever way it came. ``snapshot`` is replaced whole on a reload."""

    def __init__(
        self,
        settings: ProxySettings,
        snapshot: Snapshot,
        store: CertificateStore,
        metrics: Metrics,
        access_log: AccessLog,
        *,
        rng: random.Random,
    ) -> None:
        self.settings = settings
        self.snapshot = snapshot
        self.store = store
        self.contexts = TlsContexts(store)
        self.metrics = metrics
        self.rng = rng
        self.loop = asyncio.get_running_loop()
        self.buffers = LoopBuffers()
        self.connections = Connections(metrics, access_log, settings.timeouts, self.loop.time)
        self.pool = TunnelPool(self._dial, settings.pool)
        self.draining = False
        self._baggage: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger("proxy")

    def replace_snapshot(self, snapshot: Snapshot) -> None:
        """A new state of the mesh: new decisions use it, open connections are judged by it."""
        before: list[object] = [self.snapshot]
        self.snapshot = snapshot
        self._baggage = {}
        self._changed.set()
        self._changed = asyncio.Event()
        closed = self.connections.judge_again(snapshot)
        if closed:
            self._log.info("connections closed by changed policies", count=closed)
        self._retain_tunnels(snapshot)
        self.loop.run_in_executor(None, let_go, before)

    async def snapshot_changed(self) -> None:
        """Wait for the next snapshot."""
        await self._changed.wait()

    def _retain_tunnels(self, snapshot: Snapshot) -> None:
        """Retire the tunnels whose address no longer belongs to a workload that may answer there."""
        network = self.settings.network
        service_names = {name for service in snapshot.services.values() for name in service.subject_alt_names}

        def wanted(key: PoolKey) -> bool:
            workload = snapshot.workload_by_address(network, key.address[0])
            return workload is not None and (
                workload.identity in key.expected or not service_names.isdisjoint(key.expected)
            )

        self.pool.retain(wanted)

    def baggage(self, workload: Workload) -> str:
        """The ``baggage`` header of a workload, written once per snapshot."""
        text = self._baggage.get(workload.uid)
        if text is None:
            text = self._baggage[workload.uid] = encode_baggage(workload)
        return text

    # -- tasks -----------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run the set-up of one connection; an error that nobody expected is logged, not lost."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._set_up)

    def _set_up(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("internal error while setting up a connection", exc_info=error)

    async def stop_tasks(self) -> None:
        """Cancel the set-ups that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- certificates ----------------------------------------------------------------------------------------

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """The certificate of a local identity. Raises :class:`IdentityError`."""
        found = self.store.peek(identity)
        if found is not None:
            return found
        try:
            return await self.store.get(identity)
        except CertError as error:
            raise IdentityError(
                error.code, f"no certificate for {identity}: {error}", hint=error.hint or "see the CA's log"
            ) from error

    # -- dialling --------------------------------------------------------------------------------------------

    async def _dial(self, key: PoolKey, on_change: Callable[[Tunnel], None]) -> Tunnel:
        certificate = await self.certificate(key.source)
        remote = join_host_port(*key.address)
        tunnel = Tunnel(
            self.loop,
            self.buffers,
            settings=self.settings.tunnel,
            limits=self.settings.guard,
            remote=remote,
            on_change=on_change,
            on_guard=self.guard_tripped,
        )
        started = self.loop.time()
        try:
            await dial_tunnel(
                tunnel,
                key.address,
                self.contexts.client(certificate),
                PeerExpectation(key.expected),
                source_ip=key.source_ip,
                options=self.settings.sockets,
                timeouts=self.settings.tunnel_timeouts,
            )
        except ZtunError as error:
            if error.stage == "tls":
                self.metrics.handshake_failures.inc("client", error.code)
                if error.flag == "CERT_REVOKED":
                    self.metrics.crl_rejections.inc("source")
            raise
        self.metrics.handshake_seconds.observe(self.loop.time() - started, "client")
        self.metrics.pool_dials.inc()
        return tunnel

    async def dial_plain(
        self, address: tuple[str, int], source_ip: str | None, *, options: SocketOptions | None = None
    ) -> tuple[AppSocket, Dialled]:
        """A TCP connection to an application or a plain destination. Raises :class:`ConnectError`."""
        dialled = await connect(
            address,
            options=options if options is not None else self.settings.sockets,
            timeout=self.settings.tunnel_timeouts.connect,
            source_ip=source_ip,
        )
        app = AppSocket(self.buffers)
        await self.loop.create_connection(lambda: app, sock=dialled.sock)
        return app, dialled

    # -- reports ---------------------------------------------------------------------------------------------

    def guard_tripped(self, remote: str, abuse: Abuse, message: str) -> None:
        """A peer spent a flood budget: count it and say who."""
        self.metrics.guard_trips.inc(abuse.value)
        self._log.warning(
            "flood guard tripped, tunnel closed", peer=remote, guard=abuse.value, detail=message
        )
