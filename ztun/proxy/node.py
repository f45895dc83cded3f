"""A node proxy from start to end: load, listen, follow changes, drain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import random
import resource
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from certs.errors import CertError
from certs.issuers import open_issuer
from certs.store import CertificateStore
from ztun.errors import CertificateRevoked, ConfigError, RelayError
from ztun.mesh.snapshot import Snapshot
from ztun.proxy.entries import open_forward
from ztun.proxy.inbound import Inbound
from ztun.proxy.outbound import Outbound
from ztun.proxy.passthrough import Passthrough
from ztun.proxy.plane import Plane
from ztun.proxy.pods import Pods
from ztun.resources.settings import MeshSettings
from ztun.sources.files import FileSource
from ztun.telemetry.access_log import AccessLog
from ztun.telemetry.config_dump import ConfigDump
from ztun.telemetry.levels import Levels
from ztun.telemetry.logging import Logging, get_logger
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.readiness import Readiness
from ztun.telemetry.server import TelemetryServers
from ztun.telemetry.writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from certs.spiffe import SpiffeId
    from ztun.config import ProxySettings
    from ztun.mesh.document import Problem

TICK_SECONDS = 1.0
FLUSH_SECONDS = 2.0  # for what finished connections have left in the tunnels, after the drain
SWITCH_SECONDS = 0.0005  # how long a scrape or a log batch may keep the interpreter from the packets
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def run(settings: ProxySettings) -> int:
    """Run a node proxy until it is told to stop; gives the exit status. Raises :class:`ConfigError` at start."""
    raise_descriptor_limit()
    keep_buffers()
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(NodeProxy(settings).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one; gives (before, after)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return soft, hard
    return soft, soft


def keep_buffers() -> None:
    """Keep glibc from giving each large buffer back to the kernel: page faults were 40 % of bulk CPU.

    Quietly does nothing where the C library has no ``mallopt``.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 16 << 20)
        libc.mallopt(_M_TOP_PAD, 1 << 20)


class NodeProxy:
    """One process per node. ``run`` is its whole life."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
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

        def stop_from_thread() -> None:
            loop.call_soon_threadsafe(self._ask_to_stop)

        readiness = Readiness()
        state_ready = readiness.register("state manager")
        proxy_ready = readiness.register("proxy")
        metrics = Metrics()
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
        self._plane = plane = Plane(settings, snapshot, store, metrics, access_log, rng=random.Random())
        self._inbound = inbound = Inbound(plane)
        outbound = Outbound(plane)
        self._pods = pods = Pods(plane, outbound, inbound, Passthrough(plane))
        store.on_bundle(self._bundle_changed)
        metrics.watch_certificates(lambda: _expiries(store), lambda: datetime.now(UTC))
        metrics.watch_half_closed(plane.connections.half_closed)
        servers = TelemetryServers(
            dump=ConfigDump(
                snapshot=lambda: plane.snapshot,
                certificates=store.entries,
                connections=plane.connections.entries,
                settings=lambda: {name: getattr(settings, name) for name in settings.__slots__},
                workloads=pods.served,
            ),
            metrics=metrics,
            readiness=readiness,
            levels=levels,
            shutdown=stop_from_thread,
            admin_address=("127.0.0.1", settings.admin_port),
            metrics_address=("", settings.metrics_port),
            readiness_address=("", settings.readiness_port),
        )
        forwards: list[asyncio.Server] = []
        tasks: list[asyncio.Task[None]] = []
        try:
            servers.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._ask_to_stop)
            if settings.capture:
                await pods.open_captures()
            forwards.extend([await open_forward(plane, outbound, forward) for forward in settings.forwards])
            await pods.reconcile(snapshot)
            work = (store.run(), source.run(), self._tick(), self._follow())
            tasks.extend(loop.create_task(self._must_not_end(one)) for one in work)
            if not pods.pending:
                proxy_ready.done()
            self._proxy_ready = proxy_ready.done
            # what exists now lives as long as the process; the collector need not look at it again
            gc.collect()
            gc.freeze()
            self._log.info("proxy started", node=settings.node, pods=len(pods.served()))
            await self._stop.wait()
            readiness.register("draining")
            await self._drain(forwards)
            return self._status
        finally:
            for server in forwards:
                server.close()
            pods.stop_accepting()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await plane.stop_tasks()
            await plane.pool.close()
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
        cut = self._inbound.cut_revoked(bundle)
        for _, tunnel in list(plane.pool.tunnels()):
            if tunnel.peer is not None and bundle.is_revoked(tunnel.peer.chain):
                plane.metrics.crl_rejections.inc("source")
                tunnel.cut(revoked)
                cut += 1
        self._log.info("trust bundle changed", generation=bundle.generation, tunnels_cut=cut)

    async def _follow(self) -> None:
        """Make the listeners fit each new snapshot, and try again what could not be opened."""
        while True:
            await self._reconcile.wait()
            self._reconcile.clear()
            await self._pods.reconcile(self._plane.snapshot)
            if not self._pods.pending:
                self._proxy_ready()

    async def _tick(self) -> None:
        """Everything periodic, in slices, so that no connection waits for it."""
        plane, loop = self._plane, self._plane.loop
        hits = 0
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            plane.metrics.tick(now - due)
            plane.pool.tick(now)
            self._inbound.tick(now)
            plane.metrics.pool_hits.inc(by=plane.pool.hits - hits)
            hits = plane.pool.hits
            plane.metrics.tunnels_open.set(sum(1 for _ in plane.pool.tunnels()), "client")
            for _ in plane.connections.sweep(now):
                await asyncio.sleep(0)
            if self._pods.retry_due(now):
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

    async def _drain(self, forwards: list[asyncio.Server]) -> None:
        plane, settings = self._plane, self._settings
        self._log.info(
            "draining", connections=len(plane.connections), deadline_seconds=settings.drain_deadline
        )
        plane.draining = True
        for server in forwards:
            server.close()
        self._pods.stop_accepting()
        self._inbound.drain()
        plane.pool.drain()
        empty = asyncio.Event()
        plane.connections.on_empty = empty.set
        if not len(plane.connections):
            empty.set()
        await _first(empty.wait(), self._stop_now.wait(), settings.drain_deadline)
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
        self._inbound.close(RelayError("shutdown", "the proxy shuts down"))
        await plane.pool.close()
        await _first(self._tunnels_closed(), self._stop_now.wait(), FLUSH_SECONDS)
        self._log.info("drained", connections_cut=left)

    async def _tunnels_closed(self) -> None:
        await self._inbound.closed()
        await self._plane.pool.closed()


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
