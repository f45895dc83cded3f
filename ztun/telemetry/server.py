"""The thread that serves admin, metrics and readiness, with an event loop of its own.

A scrape of many series or a dump of a large mesh takes this thread's time, not that of the loop that carries
packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import uvicorn
from starlette.applications import Starlette

from certs.http_server import BoundedProtocol, BoundedServer
from ztun.errors import ConfigError
from ztun.mesh.model import join_host_port
from ztun.telemetry.admin import admin_app, metrics_app, readiness_app
from ztun.telemetry.config_dump import ConfigDump
from ztun.telemetry.levels import Levels
from ztun.telemetry.logging import get_logger
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.readiness import Readiness

ADMIN_PORT, METRICS_PORT, READINESS_PORT = 15000, 15020, 15021  # ztunnel's ports

READ_SECONDS = 2.0  # for a whole request; ztunnel's header timeout
WRITE_SECONDS = 10.0  # without the reader taking a byte
KEEP_ALIVE_SECONDS = 60  # longer than the usual scrape interval
MAX_HEAD_BYTES = 8 * 1024  # ztunnel's buffer
MAX_CONNECTIONS = 64  # per server: probes, a few scrapers, a few people; one more, and the quietest one goes
BACKLOG = 64
START_SECONDS = 10.0
GRACE_SECONDS = 1  # for responses under way at the end
STOP_SECONDS = 5.0

Address: TypeAlias = tuple[str, int]
"""Host and port; an empty host means all addresses of the machine, IPv6 included where there is IPv6."""


class TelemetryServers:
    """Admin, metrics and readiness servers. ``start`` binds and returns when they serve; ``stop`` ends the
    thread.

    A server whose address is None is left out. Port 0 takes a free port; ``addresses`` tells which.
    ``shutdown`` is called on the servers' thread, so it should be a ``loop.call_soon_threadsafe`` of the
    proxy's loop; so is ``tasks``, which tells what that loop is doing.
    """

    def __init__(
        self,
        *,
        dump: ConfigDump,
        metrics: Metrics,
        readiness: Readiness,
        levels: Levels,
        shutdown: Callable[[], None],
        tasks: Callable[[], str] = lambda: "",
        admin_address: Address | None = ("127.0.0.1", ADMIN_PORT),
        metrics_address: Address | None = ("", METRICS_PORT),
        readiness_address: Address | None = ("", READINESS_PORT),
    ) -> None:
        plan: tuple[tuple[str, Address | None, Starlette], ...] = (
            ("admin", admin_address, admin_app(dump, levels, shutdown, tasks)),
            ("metrics", metrics_address, metrics_app(metrics)),
            ("readiness", readiness_address, readiness_app(readiness)),
        )
        self._plan = [(name, address, app) for name, address, app in plan if address is not None]
        self._servers: list[tuple[_Server, socket.socket]] = []
        self._serving = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self.addresses: Mapping[str, Address] = MappingProxyType({})
        """Where each server listens, by name, once started."""

    def start(self) -> None:
        """Bind all addresses and serve. Raises ``ConfigError`` when one cannot be bound; then none is."""
        with contextlib.ExitStack() as undo:
            addresses: dict[str, Address] = {}
            for name, address, app in self._plan:
                listener = undo.enter_context(contextlib.closing(_bind(name, address)))
                addresses[name] = listener.getsockname()[:2]
                self._servers.append((_Server(_config(app), self._count_started), listener))
            undo.pop_all()
        self.addresses = MappingProxyType(addresses)
        self._thread.start()
        served = self._serving.wait(START_SECONDS)
        if self._error is not None or not served:
            reason = self._error or f"not serving after {START_SECONDS} seconds"
            raise ConfigError("telemetry_servers", f"the telemetry servers failed: {reason}") from self._error

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> bool:
        """Stop serving and join the thread; False when it did not end in time. Harmless before ``start``."""
        for server, _ in self._servers:
            server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _count_started(self) -> None:
        if all(server.started for server, _ in self._servers):
            self._serving.set()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve())
        except BaseException as error:
            # The end of a thread: while starting, ``start`` raises it where it can be acted on; later it is
            # logged.
            self._error = error
            if self._serving.is_set():
                get_logger("telemetry").error("the telemetry servers ended", reason=repr(error))
        finally:
            for _, listener in self._servers:
                listener.close()
            self._serving.set()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for server, listener in self._servers:
                group.create_task(server.serve([listener]))


class _Server(BoundedServer):
    """A server that tells when it serves."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(
            config, connections=MAX_CONNECTIONS, read_seconds=READ_SECONDS, write_seconds=WRITE_SECONDS
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        backlog=BACKLOG,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what a client does wrong is not news
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def _bind(name: str, address: Address) -> socket.socket:
    host, port = address
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        if not 0 <= port <= 65535:
            raise OSError("a port is a number up to 65535")
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(
            "telemetry_bind",
            f"the {name} server cannot listen on {join_host_port(host, port)}: {reason}",
            hint="end the process that uses the port, or choose another one",
        ) from error
