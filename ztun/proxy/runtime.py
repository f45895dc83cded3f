"""A proxy process from start to end: load, listen, follow changes, drain. The same for every role."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from certs.errors import CertError
from certs.issuers import open_issuer
from certs.store import CertificateStore
from ztun.errors import CertificateRevoked, ConfigError, RelayError, ZtunError
from ztun.mesh.snapshot import Snapshot
from ztun.proxy.descriptors import DescriptorWatch, raise_descriptor_limit
from ztun.proxy.plane import Plane
from ztun.resources.settings import MeshSettings
from ztun.sources.files import FileSource
from ztun.telemetry.access_log import AccessLog
from ztun.telemetry.config_dump import ConfigDump
from ztun.telemetry.levels import Levels
from ztun.telemetry.logging import Logging, get_logger
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.readiness import Readiness
from ztun.telemetry.server import TelemetryServers
from ztun.telemetry.tasks import tasks_of
from ztun.telemetry.writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from certs.bundle import TrustBundle
    from certs.spiffe import SpiffeId
    from ztun.config import ProxySettings
    from ztun.mesh.document import Problem
    from ztun.telemetry.config_dump import ServedWorkload

TICK_SECONDS = 1.0
COLLECTION_THRESHOLDS = (20_000, 20, 20)  # with Python's 700 a tenth of the CPU of a connection is collection
FLUSH_SECONDS = 2.0  # for what finished connections have left in the tunnels, after the drain


class Role(Protocol):
    """What makes a proxy a node proxy, a waypoint or a gateway: its listeners and what they serve."""

    @property
    def pending(self) -> int:
        """How many listeners are missing; the proxy is ready when there are none."""

    def served(self) -> Sequence[ServedWorkload]:
        """The workloads it answers for; called on another thread too."""

    async def open(self) -> None:
        """Open the listeners that do not depend on the mesh. Raises :class:`ConfigError`."""

    async def run(self) -> None:
        """What goes on beside the connections, until cancelled. If it fails the proxy ends, in order."""

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Make the other listeners, and the certificates that are kept, fit a snapshot."""

    def retry_due(self, now: float) -> bool:
        """Whether listeners that could not be opened should be tried again."""

    def tick(self, now: float) -> None:
        """About once a second."""

    def cut_revoked(self, bundle: TrustBundle) -> int:
        """Close the tunnels of peers that were revoked; gives how many."""

    async def stop_accepting(self) -> None:
        """Close every listener, after taking who waits in its queue; open connections go on."""

    def drain(self) -> None:
        """Ask all peers to move on."""

    def close(self, failure: ZtunError) -> None:
        """Cut what is left."""

    async def closed(self) -> None:
        """Wait until the last accepted tunnel is closed, its last byte sent."""


class Runtime:
    """The life of one proxy process, whatever its role. ``run`` is all of it."""

    def __init__(
        self, settings: ProxySettings, make_role: Callable[[Plane], Role], *, component: str = "ztunnel"
    ) -> None:
        self._settings = settings
        self._make_role = make_role
        self._component = component
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._reconcile = asyncio.Event()
        self._status = 0
        self._log = get_logger("proxy")

    async def run(self) -> int:
        """Start everything, serve until a signal, drain, stop."""
        settings = self._settings
        writer = LineWriter(sys.stdout.buffer, style=settings.log_format)
        levels = Levels(settings.log_level)
        logs = Logging(writer, style=settings.log_format, levels=levels)
        writer.start()
        logs.install()
        try:
            return await self._run(writer, levels)
        finally:
            logs.close()
            writer.close()

    async def _run(self, writer: LineWriter, levels: Levels) -> int:
        settings = self._settings
        loop = asyncio.get_running_loop()
        descriptors = raise_descriptor_limit()

        def stop_from_thread() -> None:
            loop.call_soon_threadsafe(self._ask_to_stop)

        readiness = Readiness()
        self._descriptors = DescriptorWatch(readiness)
        state_ready = readiness.register("state manager")
        proxy_ready = readiness.register("proxy")
        metrics = Metrics(component=self._component)
        metrics.watch_log(lambda: writer.dropped)
        access_log = AccessLog(
            writer, mode=settings.access_log, levels=levels, open_records=settings.open_records
        )
        source = FileSource(
            settings.config_paths,
            namespace=settings.namespace,
            settings=MeshSettings(
                cluster_domain=settings.cluster_domain,
                trust_domain=settings.trust_domain,
                cluster_id=settings.cluster_id,
                network=settings.network,
            ),
            on_snapshot=self._snapshot_loaded,
            on_problems=self._problems,
        )
        snapshot = source.load()
        self._problems(list(snapshot.problems))
        state_ready.done()
        store = self._open_store()
        await _cert(store.start())
        self._plane = plane = Plane(
            settings, snapshot, store, metrics, access_log, rng=random.Random(), readiness=readiness
        )
        self._role = role = self._make_role(plane)
        store.on_bundle(self._bundle_changed)
        metrics.watch_certificates(lambda: _expiries(store), lambda: datetime.now(UTC))
        metrics.watch_half_closed(plane.connections.half_closed)
        servers = TelemetryServers(
            dump=ConfigDump(
                snapshot=lambda: plane.snapshot,
                certificates=store.entries,
                connections=plane.connections.entries,
                settings=lambda: {name: getattr(settings, name) for name in settings.__slots__},
                workloads=role.served,
            ),
            metrics=metrics,
            readiness=readiness,
            levels=levels,
            shutdown=stop_from_thread,
            tasks=lambda: tasks_of(loop),
            admin_address=("127.0.0.1", settings.admin_port),
            metrics_address=("", settings.metrics_port),
            readiness_address=("", settings.readiness_port),
        )
        tasks: list[asyncio.Task[None]] = []
        try:
            servers.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._ask_to_stop)
            await role.open()
            await role.reconcile(snapshot)
            work = (store.run(), source.run(), role.run(), self._tick(), self._follow())
            tasks.extend(loop.create_task(self._must_not_end(one)) for one in work)
            if not role.pending:
                proxy_ready.done()
            self._proxy_ready = proxy_ready.done
            # what exists now lives as long as the process; the collector need not look at it again
            gc.collect()
            gc.freeze()
            gc.set_threshold(*COLLECTION_THRESHOLDS)
            self._log.info("limit of open files", before=descriptors[0], now=descriptors[1])
            self._log.info("proxy started", node=settings.node, workloads=len(role.served()))
            await self._stop.wait()
            readiness.register("draining")
            await self._drain()
            return self._status
        finally:
            await role.stop_accepting()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await plane.close_sites()
            plane.poller.close()
            await store.close()
            servers.stop()

    def _open_store(self) -> CertificateStore:
        def now() -> datetime:
            return datetime.now(UTC)

        settings = self._settings
        try:
            issuer = open_issuer(
                settings.ca,
                now=now,
                lifetime=settings.certificate_lifetime,
                roots=settings.ca_roots,
                token=settings.ca_token,
                certificate=settings.ca_certificate,
            )
            return CertificateStore(issuer, now=now, rng=random.SystemRandom())
        except CertError as error:
            raise ConfigError(error.code, f"--ca: {error}", hint=error.hint) from error

    # -- changes ---------------------------------------------------------------------------------------------

    def _snapshot_loaded(self, snapshot: Snapshot) -> None:
        self._plane.replace_snapshot(snapshot)
        self._reconcile.set()
        self._log.info(
            "configuration loaded", generation=snapshot.generation, workloads=len(snapshot.workloads)
        )

    def _problems(self, problems: list[Problem]) -> None:
        for problem in problems:
            write = {"error": self._log.error, "warning": self._log.warning}.get(
                problem.severity, self._log.info
            )
            write(str(problem))

    def _bundle_changed(self) -> None:
        """Roots may come and go under open tunnels; a revoked peer is cut."""
        plane = self._plane
        bundle = plane.store.bundle
        revoked = CertificateRevoked("peer_revoked", "the peer's certificate was revoked")
        for connection in plane.connections.peers_revoked(bundle):
            if connection.relay is not None:
                connection.relay.cut(revoked)
        cut = self._role.cut_revoked(bundle)
        for tunnel in plane.tunnels():
            if tunnel.cut_if_revoked(bundle):
                plane.metrics.crl_rejections.inc("source")
                cut += 1
        self._log.info("trust bundle changed", generation=bundle.generation, tunnels_cut=cut)

    async def _follow(self) -> None:
        """Make the listeners fit each new snapshot, and try again what could not be opened."""
        while True:
            await self._reconcile.wait()
            self._reconcile.clear()
            await self._role.reconcile(self._plane.snapshot)
            if not self._role.pending:
                self._proxy_ready()

    async def _tick(self) -> None:
        """Everything periodic, in slices, so that no connection waits for it."""
        plane, loop = self._plane, self._plane.loop
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            plane.metrics.tick(now - due)
            plane.metrics.tasks.set(len(asyncio.all_tasks()))
            plane.metrics.held_bytes.set(plane.poller.holdings.total)
            for site in list(plane.sites):
                site.tick(now)
            self._role.tick(now)
            self._descriptors.look()
            plane.metrics.tunnels_open.set(sum(1 for _ in plane.tunnels()), "client")
            for _ in plane.connections.sweep(now):
                await asyncio.sleep(0)
            if self._role.retry_due(now):
                self._reconcile.set()

    async def _must_not_end(self, work: Coroutine[None, None, None]) -> None:
        """A background task that fails takes the proxy down in order: half a proxy helps nobody."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log.error("background task failed, shutting down", exc_info=error)
            self._status = 1
            self._ask_to_stop()

    # -- the end ---------------------------------------------------------------------------------------------

    def _ask_to_stop(self) -> None:
        """First time: drain. Second time: end at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _drain(self) -> None:
        plane, settings = self._plane, self._settings
        self._log.info(
            "draining", connections=len(plane.connections), deadline_seconds=settings.drain_deadline
        )
        ends_at = plane.loop.time() + settings.drain_deadline
        plane.draining = True
        await self._role.stop_accepting()
        self._role.drain()
        # whoever was accepted is served, with tunnels that are still to be made for it
        await _first(plane.settled(), self._stop_now.wait(), settings.drain_deadline)
        for site in plane.sites:
            site.pool.drain()
        empty = asyncio.Event()
        plane.connections.on_empty = empty.set
        if not len(plane.connections):
            empty.set()
        await _first(empty.wait(), self._stop_now.wait(), max(0.0, ends_at - plane.loop.time()))
        left = plane.connections.cut_where(
            lambda _: True,
            RelayError(
                "drain_timeout",
                "connection closed due to connection drain",
                hint="CONNECTION_TERMINATION_DEADLINE sets how long a drain may take",
            ),
        )
        # a peer that was told to go away closes when it has read everything; closing first, with credit of its
        # unread, makes the kernel reset the connection and lose the last bytes
        await _first(self._tunnels_closed(), self._stop_now.wait(), FLUSH_SECONDS)
        self._role.close(RelayError("shutdown", "the proxy shuts down"))
        for site in plane.sites:
            await site.pool.close()
        await _first(self._tunnels_closed(), self._stop_now.wait(), FLUSH_SECONDS)
        self._log.info("drained", connections_cut=left)

    async def _tunnels_closed(self) -> None:
        await self._role.closed()
        for site in list(self._plane.sites):
            await site.pool.closed()


async def _first(
    one: Coroutine[None, None, object], other: Coroutine[None, None, object], seconds: float
) -> None:
    """Wait for either, at most so long."""
    waits = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _cert(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except CertError as error:
        raise ConfigError(error.code, f"--ca: {error}", hint=error.hint) from error


def _expiries(store: CertificateStore) -> list[tuple[SpiffeId, datetime]]:
    return [(entry.identity, entry.chain[0].not_valid_after_utc) for entry in store.entries() if entry.chain]
