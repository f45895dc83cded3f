"""Reaching a next hop that was decided on: over a pooled tunnel, or plainly."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ztun.errors import ConnectError, ConnectRefused, RouteError, TunnelError, TunnelTlsError, ZtunError
from ztun.hbone.connect import connect_headers
from ztun.mesh.address import is_hostname
from ztun.mesh.baggage import encode_forwarded, new_traceparent
from ztun.mesh.lookup import OutboundRoute
from ztun.mesh.model import join_host_port
from ztun.net.pool import PoolKey
from ztun.telemetry.labels import workload_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.peer import PeerIdentity
    from ztun.hbone.stream import TunnelStream
    from ztun.mesh.model import Workload
    from ztun.net.app_socket import AppSocket
    from ztun.net.dial import SocketOptions
    from ztun.net.opening import Answered
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site
    from ztun.traffic.policy import Keepalive, PoolLimits

ATTEMPTS = 2  # the first endpoint and one other; no byte of the client was consumed before
MAX_KEEPALIVE_SECONDS = 32_767  # what Linux accepts
MAX_KEEPALIVE_PROBES = 127
_SERVICE_UNAVAILABLE = 503
_OF_THE_TUNNEL = frozenset(
    {"stream_refused", "tls_closed", "tunnel_lost", "tunnel_closed", "tunnel_unusable"}
)
"""Failures after which a new tunnel to the same endpoint may do better: a listener that closed, a proxy that drains, a
tunnel that had been dead for a while. Nothing of the client's was consumed."""


class Reached(NamedTuple):
    """A server end that was made: by which route, with whom; ``failure`` is that of the endpoint tried before."""

    route: OutboundRoute
    server: AppSocket | TunnelStream
    peer: PeerIdentity | None
    failure: ZtunError | None = None


class Connector:
    """Makes the server end of a connection."""

    def __init__(self, plane: Plane, site: Site | None = None) -> None:
        self._plane = plane
        self._site = site or plane.home

    async def reach(
        self,
        source: Workload,
        source_address: tuple[str, int],
        route: OutboundRoute,
        another: Callable[[frozenset[str]], OutboundRoute],
        limits: PoolLimits | None = None,
        failed: ZtunError | None = None,
    ) -> Reached:
        """Reach the next hop, or on failure another endpoint once. Raises the first failure if both fail.

        ``another`` gives a route that avoids the workloads with these uids, or raises :class:`RouteError`.
        ``limits`` are those of the destination's traffic policy. ``failed`` is why the attempt by ``route``, which
        was made before, came to nothing.
        """
        excluded: frozenset[str] = frozenset()
        first: ZtunError | None = None
        for attempt in range(ATTEMPTS):
            try:
                if failed is not None and attempt == 0:
                    raise failed
                server, peer = await self.connect(source, source_address, route, limits)
            except ZtunError as error:
                first = first or error
                # an address outside the mesh has no other endpoint, and the client itself may try again
                outside = route.authority is None and route.destination is None
                if attempt + 1 == ATTEMPTS or outside or not worth_another(error):
                    raise first from error
                if route.destination is not None:
                    excluded |= {route.destination.uid}
                try:
                    route = another(excluded)
                except RouteError:
                    if error.code not in _OF_THE_TUNNEL:
                        raise first from error
                    # a new tunnel to the same endpoint may be luckier, e.g. while its proxy is being replaced
            else:
                return Reached(route, server, peer, first)
        raise AssertionError("unreachable")

    async def connect(
        self,
        source: Workload,
        source_address: tuple[str, int],
        route: OutboundRoute,
        limits: PoolLimits | None = None,
    ) -> tuple[AppSocket | TunnelStream, PeerIdentity | None]:
        """The server end, and who it is when it is a tunnel. Raises :class:`ZtunError` of the stage that failed.

        ``source`` is the local workload in whose name the connection is made; ``source_address`` is the client's,
        which is another one when ``source`` is a waypoint or gateway.
        """
        if limits is None:
            return await self._connect(source, source_address, route, None)
        try:
            async with asyncio.timeout(limits.connect_timeout):
                return await self._connect(source, source_address, route, limits.keepalive)
        except TimeoutError:
            raise ConnectError(
                "connect_timeout",
                f"the destination did not take the connection within {limits.connect_timeout:g} s",
                hint="connectionPool.tcp.connectTimeout of its DestinationRule sets the limit",
                peer=join_host_port(*route.address),
            ) from None

    async def _connect(
        self,
        source: Workload,
        source_address: tuple[str, int],
        route: OutboundRoute,
        keepalive: Keepalive | None,
    ) -> tuple[AppSocket | TunnelStream, PeerIdentity | None]:
        address = await self._resolve(source, source_address, route.address)
        if route.authority is None:
            options = _with_keepalive(self._plane.settings.sockets, keepalive)
            source_ip = self._source_ip(source, source_address, address)
            return await self._site.dial_plain(address, source_ip, options=options), None
        tunnel, stream = await self._site.pool.open(*self._request(source, source_address, route, address))
        return stream, tunnel.peer

    def request(
        self, source: Workload, source_address: tuple[str, int], route: OutboundRoute, done: Answered
    ) -> bool:
        """Begin to reach the next hop at once, if that is a tunnel with room; False if it is not.

        ``done`` is called once with the stream or with what ``connect`` would raise.
        """
        if route.authority is None or is_hostname(route.address[0]):
            return False
        request = self._request(source, source_address, route, route.address)
        return self._site.pool.request(*request, done)

    def _request(
        self,
        source: Workload,
        source_address: tuple[str, int],
        route: OutboundRoute,
        address: tuple[str, int],
    ) -> tuple[PoolKey, list[tuple[bytes, bytes]], float]:
        """The tunnel to use, what to ask for, and how long to wait for the answer in seconds."""
        plane = self._plane
        assert route.authority is not None
        headers = connect_headers(
            route.authority,
            baggage=plane.baggage(source),
            forwarded=encode_forwarded(
                *source_address, route.service.hostname if route.service is not None else None
            ),
            traceparent=new_traceparent(plane.rng),
        )
        source_ip = self._source_ip(source, source_address, address)
        key = PoolKey(source.identity, frozenset(route.expected), address, source_ip)
        return key, headers, plane.settings.tunnel_timeouts.connect_response

    def _source_ip(self, source: Workload, client: tuple[str, int], address: tuple[str, int]) -> str | None:
        """The address to dial from: the client's if it is the workload's own, else one of the workload's.

        Inside the pod's own namespace that is the kernel's business.
        """
        if self._site.namespace is not None:
            return None
        if client[0] in source.addresses:
            return client[0]
        wants_v6 = ":" in address[0]
        return next((ip for ip in source.addresses if (":" in ip) is wants_v6), None)

    async def _resolve(
        self, source: Workload, client: tuple[str, int], address: tuple[str, int]
    ) -> tuple[str, int]:
        """A workload that is known by DNS name only is resolved when it is dialled.

        What the client dialled was of the family of its own address, so that is preferred.
        """
        host, port = address
        if not is_hostname(host):
            return address
        self._plane.metrics.on_demand_dns.inc(*workload_values(source, source.identity), host)
        return await self._site.resolve(host, 6 if ":" in client[0] else 4), port


def _with_keepalive(options: SocketOptions, keepalive: Keepalive | None) -> SocketOptions:
    """Of a plain connection; a tunnel is shared by many and kept alive by its own pings."""
    if keepalive is None:
        return options
    return replace(
        options,
        keepalive=True,
        keepalive_time=_clamped(keepalive.time, options.keepalive_time, MAX_KEEPALIVE_SECONDS),
        keepalive_interval=_clamped(keepalive.interval, options.keepalive_interval, MAX_KEEPALIVE_SECONDS),
        keepalive_probes=_clamped(keepalive.probes, options.keepalive_probes, MAX_KEEPALIVE_PROBES),
    )


def _clamped(value: float | None, default: int, highest: int) -> int:
    return default if value is None else min(max(1, round(value)), highest)


def worth_another(error: ZtunError) -> bool:
    """Whether another endpoint, or the same one over a new tunnel, may do better."""
    if isinstance(error, ConnectRefused):
        return error.status == _SERVICE_UNAVAILABLE
    return isinstance(error, ConnectError | TunnelError | TunnelTlsError) and error.code != "pool_draining"
