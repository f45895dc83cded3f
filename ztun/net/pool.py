"""Which tunnel a connection uses.

1. Tunnels are shared by connections with the same source identity and address, the same next hop and the same
   expected identities; never wider, or one pod would speak with another's name.
2. Of the ready tunnels the fullest that has room is taken; a full tunnel is used again when it drains.
3. One dial at a time per key. Whoever comes meanwhile waits; when the dial fails all waiters get its error.
4. A tunnel that nobody uses for ``idle_timeout`` is closed, and so are those whose destination is gone. One that is
   used may outlive its certificates, as in ztunnel: a CA that is away must not end what goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ztun.errors import TunnelError, ZtunError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from certs.spiffe import SpiffeId
    from ztun.hbone.stream import TunnelStream
    from ztun.net.opening import Answered
    from ztun.net.tunnel import Tunnel


class PoolKey(NamedTuple):
    """What connections must have in common to share a tunnel (ztunnel's key)."""

    source: SpiffeId
    expected: frozenset[SpiffeId]
    address: tuple[str, int]
    source_ip: str | None


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of the pool; times in seconds."""

    streams_per_tunnel: int = 100
    tunnels_per_key: int = 1024
    waiters_per_key: int = 16_384
    idle_timeout: float = 300.0
    wait_timeout: float = 35.0
    """Longer than the stages of a dial together, so that its own error is what the waiters hear."""


class _Entry:
    __slots__ = ("dialling", "tunnels", "unwanted", "waiters")

    def __init__(self) -> None:
        self.tunnels: list[Tunnel] = []
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.dialling: asyncio.Task[None] | None = None
        self.unwanted = False  # what is being dialled was given up meanwhile


class TunnelPool:
    """All outgoing tunnels of a proxy. ``dial`` makes a ready tunnel for a key or raises :class:`ZtunError`.

    ``hits`` counts connections that found a tunnel, ``dials`` the tunnels that were made.
    """

    def __init__(
        self, dial: Callable[[PoolKey, Callable[[Tunnel], None]], Awaitable[Tunnel]], limits: PoolLimits
    ) -> None:
        self._dial = dial
        self._limits = limits
        self._entries: dict[PoolKey, _Entry] = {}
        self._closed = False
        self._gone: asyncio.Future[None] | None = None
        self._lingering: set[Tunnel] = (
            set()
        )  # closed in order, and their sockets may still wait for the peers
        self.hits = 0
        self.dials = 0

    def request(
        self, key: PoolKey, headers: Iterable[tuple[bytes, bytes]], timeout: float, done: Answered
    ) -> bool:
        """Open a CONNECT stream at once on a tunnel that has room (see ``Tunnel.request``); False if none has."""
        tunnel = self._best(key)
        if tunnel is None:
            return False
        self.hits += 1
        tunnel.request(headers, timeout, done)
        return True

    async def open(
        self, key: PoolKey, headers: Iterable[tuple[bytes, bytes]], timeout: float
    ) -> tuple[Tunnel, TunnelStream]:
        """Open a CONNECT stream on a tunnel for ``key``; waits for a dial when there is none with room.

        Raises what the dial raised, or what ``Tunnel.open`` raises; ``pool_overload`` when too many wait already.
        """
        tunnel = self._best(key)
        if tunnel is None:
            try:
                async with asyncio.timeout(self._limits.wait_timeout):
                    tunnel = await self._wait(key)
            except TimeoutError:
                raise TunnelError(
                    "pool_timeout",
                    f"no tunnel had room for the connection within {self._limits.wait_timeout:g} s",
                    hint="the peer takes no more streams, or tunnels to it cannot be made fast enough",
                ) from None
        else:
            self.hits += 1
        return tunnel, await tunnel.open(headers, timeout)

    def tunnels(self) -> Iterator[tuple[PoolKey, Tunnel]]:
        """Every tunnel that is not closed."""
        for key, entry in self._entries.items():
            for tunnel in entry.tunnels:
                yield key, tunnel

    def retain(self, wanted: Callable[[PoolKey], bool]) -> None:
        """Retire the tunnels whose key is no longer wanted: the address may soon belong to another workload."""
        for key, entry in list(self._entries.items()):
            if not wanted(key):
                entry.unwanted = entry.dialling is not None
                self._fail(entry, _gone())
                for tunnel in list(entry.tunnels):
                    tunnel.retire()

    def tick(self, now: float) -> None:
        """About once a second: keepalive, idle tunnels, entries that nobody needs."""
        self._lingering = {tunnel for tunnel in self._lingering if tunnel.lingers}
        for key, entry in list(self._entries.items()):
            for tunnel in list(entry.tunnels):
                tunnel.tick(now)
                if not tunnel.stream_count and now - tunnel.idle_since >= self._limits.idle_timeout:
                    tunnel.retire()
            if not entry.tunnels and not entry.waiters and entry.dialling is None:
                del self._entries[key]

    def drain(self) -> None:
        """Make no more tunnels, send away who waits for one; those that exist end with their last stream."""
        self._closed = True
        for entry in self._entries.values():
            self._fail(entry, _draining())
            for tunnel in list(entry.tunnels):
                tunnel.retire()

    async def close(self) -> None:
        """Stop dialling and cut what is left."""
        self._closed = True
        tasks = [entry.dialling for entry in self._entries.values() if entry.dialling is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gone = _draining()
        for entry in self._entries.values():
            self._fail(entry, gone)
            for tunnel in list(entry.tunnels):
                tunnel.cut(gone)
        for tunnel in self._lingering:
            tunnel.abort()  # or it would keep the network namespace of a pod that is gone

    async def closed(self) -> None:
        """Wait until the last tunnel is closed, its last byte sent."""
        while any(entry.tunnels for entry in self._entries.values()):
            self._gone = asyncio.get_running_loop().create_future()
            await self._gone

    # -- inside ----------------------------------------------------------------------------------------------

    def _room(self, tunnel: Tunnel) -> bool:
        return tunnel.free_streams > 0 and tunnel.stream_count < self._limits.streams_per_tunnel

    def _best(self, key: PoolKey) -> Tunnel | None:
        """The fullest tunnel that has room.

        Streams of one tunnel share records and system calls: 64 busy connections beside 10,000 idle ones had a third of
        the requests when they went to the emptiest of a hundred tunnels. What a burst leaves over becomes idle, and is
        closed.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        best: Tunnel | None = None
        for tunnel in entry.tunnels:
            if self._room(tunnel) and (best is None or tunnel.stream_count > best.stream_count):
                best = tunnel
        return best

    async def _wait(self, key: PoolKey) -> Tunnel:
        while True:
            if self._closed:
                raise _draining()
            entry = self._entries.setdefault(key, _Entry())
            if len(entry.waiters) >= self._limits.waiters_per_key:
                raise TunnelError(
                    "pool_overload", "too many connections wait for a tunnel to this destination"
                )
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            self._dial_if_needed(key, entry)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in entry.waiters:
                    entry.waiters.remove(waiter)
                else:
                    self._wake(key, entry)  # the room that it was woken for is somebody else's now
                raise
            tunnel = self._best(key)
            if tunnel is not None:
                return tunnel

    def _dial_if_needed(self, key: PoolKey, entry: _Entry) -> None:
        if entry.waiters and entry.dialling is None and not self._closed:
            if len(entry.tunnels) >= self._limits.tunnels_per_key:
                return  # a stream that ends wakes the next waiter
            entry.unwanted = False
            entry.dialling = asyncio.get_running_loop().create_task(self._dial_one(key, entry))

    async def _dial_one(self, key: PoolKey, entry: _Entry) -> None:
        try:
            tunnel = await self._dial(key, lambda changed: self._changed(key, entry, changed))
        except ZtunError as error:
            entry.dialling = None
            self._fail(entry, error)
            return
        except asyncio.CancelledError:
            entry.dialling = None
            raise
        except Exception as error:
            entry.dialling = None
            self._fail(entry, TunnelError("dial_failed", f"unexpected error while dialling: {error!r}"))
            raise
        self.dials += 1
        entry.dialling = None
        if self._closed or entry.unwanted:
            tunnel.retire()
        if not tunnel.is_closed:
            entry.tunnels.append(tunnel)
        if not self._room(tunnel):
            # dialling again would get the same answer, as fast as the peer can give it
            self._serve(entry)
            self._fail(entry, _gone() if entry.unwanted else _unusable())
        self._wake(key, entry)

    def _changed(self, key: PoolKey, entry: _Entry, tunnel: Tunnel) -> None:
        if tunnel.is_closed and tunnel.lingers:
            self._lingering.add(tunnel)
        if tunnel.is_closed and tunnel in entry.tunnels:
            entry.tunnels.remove(tunnel)
            if self._gone is not None and not self._gone.done():
                self._gone.set_result(None)
        if entry.waiters:
            self._wake(key, entry)

    def _wake(self, key: PoolKey, entry: _Entry) -> None:
        """Wake as many waiters as there is room for; dial for the rest."""
        self._serve(entry)
        self._dial_if_needed(key, entry)

    def _serve(self, entry: _Entry) -> None:
        if not entry.waiters:
            return
        room = 0
        for tunnel in entry.tunnels:
            if self._room(tunnel):
                room += min(tunnel.free_streams, self._limits.streams_per_tunnel - tunnel.stream_count)
        while room > 0 and entry.waiters:
            waiter = entry.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _fail(self, entry: _Entry, error: ZtunError) -> None:
        while entry.waiters:
            waiter = entry.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)


def _gone() -> TunnelError:
    return TunnelError("destination_gone", "the destination left the mesh while its tunnel was made")


def _unusable() -> TunnelError:
    return TunnelError(
        "tunnel_unusable", "the peer takes no streams on a new tunnel", hint="is the peer shutting down?"
    )


def _draining() -> TunnelError:
    return TunnelError("pool_draining", "the proxy shuts down", hint="connect again, elsewhere")
