"""Where connections are made from: the proxy's own network namespace, or that of one pod.

Its tunnels and the set-ups under way belong to it and end with it. So a pod that comes back under the same address,
in another namespace, never gets a socket of the one before.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from certs.peer import PeerExpectation
from ztun.dns.stub import families, resolve_first
from ztun.dns.upstream import Upstream
from ztun.errors import CaptureError, ConnectError, DnsError, ZtunError
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.dial import connect
from ztun.net.namespaces import make_socket
from ztun.net.pool import PoolKey, TunnelPool
from ztun.net.tunnel import Tunnel, dial_tunnel
from ztun.proxy.descriptors import connections_of_one_pod
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from ztun.dns.proxy import DnsProxy
    from ztun.dns.zone import Family
    from ztun.net.dial import SocketOptions
    from ztun.net.namespaces import NetworkNamespace
    from ztun.proxy.plane import Plane


class Site:
    """Dials in one namespace. ``namespace`` is None for the proxy's own."""

    def __init__(self, plane: Plane, namespace: NetworkNamespace | None = None) -> None:
        self.namespace = namespace
        self.keep_source = plane.settings.keep_source
        """Whether applications see the client's address: they must, they never do, or where possible (None)."""
        self.pool = TunnelPool(self._dial, plane.settings.pool)
        self.upstream = Upstream(plane.dns.nameservers, self._make_socket, plane.dns.limits)
        """The nameservers, as they are asked from here."""
        self.dns: DnsProxy | None = None
        """Of the pod, where its queries are captured."""
        self._plane = plane
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._none_waits: asyncio.Future[None] | None = None
        self.closed = False
        self.connections = 0
        """How many are open that belong here."""
        self._connections_limit = plane.settings.pod_connections or connections_of_one_pod()
        self._hits = 0
        self._log = get_logger("proxy")

    def check_room(self) -> None:
        """Raise :class:`CaptureError` when a pod has taken its share of the process, which serves all of its node."""
        if self.namespace is not None and self.connections >= self._connections_limit:
            raise CaptureError(
                "too_many_connections",
                f"the pod has {self.connections} connections, and may have no more",
                hint="ZTUN_MAX_CONNECTIONS_PER_POD sets the limit",
            )

    # -- set-ups ---------------------------------------------------------------------------------------------

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of a set-up now; an error that nobody expected is logged, and harms nobody else."""
        try:
            work()
        except Exception as error:
            self._log.error("internal error while setting up a connection", exc_info=error)

    def began(self) -> None:
        """A set-up waits for something that is no task; ``ended`` follows."""
        self._waiting += 1

    def ended(self) -> None:
        """It waits no more."""
        self._waiting -= 1
        if not self._waiting and self._none_waits is not None and not self._none_waits.done():
            self._none_waits.set_result(None)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run the set-up of one connection; an error that nobody expected is logged, not lost."""
        task = self._plane.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._set_up)

    def _set_up(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("internal error while setting up a connection", exc_info=error)

    async def settled(self) -> None:
        """Wait until no set-up is under way."""
        while self._tasks or self._waiting:
            if self._tasks:
                await asyncio.wait(self._tasks)
            else:
                self._none_waits = self._plane.loop.create_future()
                await self._none_waits

    async def stop_tasks(self) -> None:
        """Cancel the set-ups that are under way."""
        await asyncio.sleep(0)  # a task that was cancelled before its first step would not clean up
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End what is being set up, and cut every tunnel."""
        self.closed = True
        if self.dns is not None:
            self.dns.close()
        await self.stop_tasks()
        await self.pool.close()
        if self.dns is not None:
            await self.dns.closed()

    async def resolve(self, host: str, preferred: Family) -> str:
        """One address of a host that is not of the mesh, of the preferred family if there is one.

        Where the proxy's own namespace is captured, queries of the C library would come to the proxy itself, and
        a name that has an address of the mesh would lead back into it. There the nameservers are asked directly.
        Raises :class:`ConnectError` with the code of the :class:`DnsError`.
        """
        plane = self._plane
        wanted = families(preferred, ipv6=plane.settings.ipv6)
        limit = plane.settings.tunnel_timeouts.connect
        try:
            async with asyncio.timeout(limit):
                if plane.settings.capture and plane.settings.dns is not None:
                    found = await plane.lookups.find(
                        (host, preferred), lambda: resolve_first(self.upstream, host, wanted, plane.rng)
                    )
                else:
                    found = await plane.lookups.find(host, lambda: self._ask_system(host))
            return self._choose(found, wanted)
        except DnsError as error:
            raise ConnectError(
                error.code, f"{host} cannot be resolved: {error}", hint=error.hint, peer=host
            ) from error
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no answer within {limit:g} s"
            raise ConnectError("dns_lookup", f"{host} cannot be resolved: {why}", peer=host) from error

    async def _ask_system(self, host: str) -> tuple[str, ...]:
        family = socket.AF_UNSPEC if self._plane.settings.ipv6 else socket.AF_INET
        found = await self._plane.loop.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
        return tuple(str(address[0]) for *_, address in found)

    def _choose(self, found: Sequence[str], wanted: Sequence[Family]) -> str:
        for family in wanted:
            if fitting := [ip for ip in found if (":" in ip) is (family == 6)]:
                return self._plane.rng.choice(fitting)
        raise DnsError("dns_empty", "it has no address of a family that is used here")

    def _make_socket(self, family: int, kind: int) -> socket.socket:
        """A socket of this namespace that is not captured. Raises ``OSError``."""
        sock = make_socket(family, kind, self.namespace)
        try:
            self._plane.settings.sockets.apply(sock)
        except OSError:
            sock.close()
            raise
        return sock

    # -- dialling --------------------------------------------------------------------------------------------

    async def dial_plain(
        self, address: tuple[str, int], source_ip: str | None, *, options: SocketOptions | None = None
    ) -> AppSocket:
        """A TCP connection to a plain destination. Raises :class:`ConnectError`."""
        plane = self._plane
        dial = await connect(
            address,
            options=options if options is not None else plane.settings.sockets,
            timeout=plane.settings.tunnel_timeouts.connect,
            source_ip=source_ip,
            namespace=self.namespace,
        )
        return AppSocket(plane.poller, dial.sock)

    async def _dial(self, key: PoolKey, on_change: Callable[[Tunnel], None]) -> Tunnel:
        plane = self._plane
        certificate = await plane.certificate(key.source)
        tunnel = Tunnel(
            plane.poller,
            settings=plane.settings.tunnel,
            limits=plane.settings.guard,
            remote=join_host_port(*key.address),
            on_change=on_change,
            on_guard=plane.guard_tripped,
        )
        started = plane.loop.time()
        try:
            await dial_tunnel(
                tunnel,
                key.address,
                plane.contexts.client(certificate),
                PeerExpectation(key.expected),
                source_ip=key.source_ip,
                options=plane.settings.sockets,
                timeouts=plane.settings.tunnel_timeouts,
                namespace=self.namespace,
            )
        except ZtunError as error:
            if error.stage == "tls":
                plane.metrics.handshake_failures.inc("client", error.code)
                if error.flag == "CERT_REVOKED":
                    plane.metrics.crl_rejections.inc("source")
            raise
        # its handshake may have begun before the revocation list came
        if revoked := tunnel.cut_if_revoked(plane.store.bundle):
            plane.metrics.crl_rejections.inc("source")
            raise revoked
        plane.metrics.handshake_seconds.observe(plane.loop.time() - started, "client")
        plane.metrics.pool_dials.inc()
        return tunnel

    def tick(self, now: float) -> None:
        """About once a second."""
        self.pool.tick(now)
        hits = self.pool.hits
        self._plane.metrics.pool_hits.inc(by=hits - self._hits)
        self._hits = hits
