"""The pool of tunnels: its promises one by one, and all of them at once under arbitrary use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from certs.spiffe import SpiffeId
from ztun.errors import TunnelError, ZtunError
from ztun.net.pool import PoolKey, PoolLimits, TunnelPool
from ztun.net.tunnel import Tunnel

pytestmark = pytest.mark.unit

TIMEOUT = 5.0
IDLE_TIMEOUT = 300.0
CLIENT = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/client")
SERVER = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/server")


def key_of(ip: str = "10.0.0.5", *, source: SpiffeId = CLIENT, source_ip: str | None = "10.0.0.1") -> PoolKey:
    return PoolKey(source, frozenset({SERVER}), (ip, 15008), source_ip)


KEYS = [key_of(), key_of("10.0.0.6"), key_of(source_ip="10.0.0.2")]


class FakeTunnel:
    """A tunnel without a wire: what the pool may know of one, and checks of what the pool does with it."""

    def __init__(
        self, key: PoolKey, on_change: Callable[[Tunnel], None], *, allowed: int, most: int, now: float = 0.0
    ) -> None:
        self.key = key
        self.allowed = allowed
        self.draining = False
        self.is_closed = False
        self.lingers = False
        self.idle_since = now
        self.ticks = 0
        self.streams: list[object] = []
        self.failure: ZtunError | None = None
        self._most = most
        self._on_change = on_change

    @property
    def free_streams(self) -> int:
        return 0 if self.draining or self.is_closed else max(0, self.allowed - len(self.streams))

    @property
    def stream_count(self) -> int:
        return len(self.streams)

    async def open(self, headers: Sequence[tuple[bytes, bytes]], timeout: float) -> tuple[object, list[Any]]:
        assert not self.is_closed, "a closed tunnel is used"
        assert not self.draining, "a draining tunnel is used"
        assert len(self.streams) < min(self.allowed, self._most), "too many streams on a tunnel"
        stream = object()
        self.streams.append(stream)
        return stream, []

    def retire(self) -> None:
        self.draining = True
        if not self.streams:
            self.close()

    def cut(self, failure: ZtunError) -> None:
        self.failure = failure
        self.close()

    def abort(self) -> None:
        self.lingers = False

    def tick(self, now: float) -> None:
        assert not self.is_closed, "a closed tunnel is kept"
        self.ticks += 1

    # -- what happens to it ------------------------------------------------------------------------------------

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.streams.clear()
            self.changed()

    def end_stream(self, now: float = 0.0) -> None:
        self.streams.pop()
        if not self.streams:
            self.idle_since = now
            if self.draining:
                self.close()
                return
        self.changed()

    def changed(self) -> None:
        self._on_change(cast("Tunnel", self))


class Dialler:
    """The dial function of a pool: it waits until the test says what comes of it."""

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self.now = 0.0
        self.pending: dict[PoolKey, tuple[asyncio.Future[FakeTunnel], Callable[[Tunnel], None]]] = {}
        self.started = 0
        self.tunnels: list[FakeTunnel] = []

    async def dial(self, key: PoolKey, on_change: Callable[[Tunnel], None]) -> Tunnel:
        assert key not in self.pending, "two dials at once for one key"
        future: asyncio.Future[FakeTunnel] = asyncio.get_running_loop().create_future()
        self.pending[key] = (future, on_change)
        self.started += 1
        try:
            return cast("Tunnel", await future)
        finally:
            del self.pending[key]

    def succeed(self, key: PoolKey, *, allowed: int = 100) -> FakeTunnel:
        future, on_change = self.pending[key]
        tunnel = FakeTunnel(
            key, on_change, allowed=allowed, most=self.limits.streams_per_tunnel, now=self.now
        )
        self.tunnels.append(tunnel)
        future.set_result(tunnel)
        return tunnel

    def fail(self, key: PoolKey, error: Exception) -> None:
        self.pending[key][0].set_exception(error)

    def pool(self) -> TunnelPool:
        return TunnelPool(self.dial, self.limits)


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(20):
        await asyncio.sleep(0)


Opened = tuple[Tunnel, Any, Any]


def connect(pool: TunnelPool, key: PoolKey = KEYS[0]) -> asyncio.Task[Opened]:
    return asyncio.get_running_loop().create_task(pool.open(key, [], TIMEOUT))


def small(**changes: Any) -> Dialler:
    return Dialler(PoolLimits(**{"streams_per_tunnel": 2, **changes}))


async def failure_of(task: asyncio.Task[Opened]) -> ZtunError:
    with pytest.raises(ZtunError) as caught:
        await task
    return caught.value


# -- one by one --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_whoever_comes_while_a_tunnel_is_dialled_waits_for_it() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(50)]
    await settle()
    assert dialler.started == 1
    tunnel = dialler.succeed(KEYS[0])
    used = {id((await task)[0]) for task in tasks}
    assert used == {id(tunnel)}
    assert dialler.started == 1
    assert (pool.dials, pool.hits) == (1, 0)
    await connect(pool)
    assert pool.hits == 1
    await pool.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "other",
    [
        key_of("10.0.0.6"),
        key_of(source_ip="10.0.0.2"),
        key_of(source=SpiffeId.parse("spiffe://cluster.local/ns/default/sa/other")),
        PoolKey(CLIENT, frozenset({SERVER, CLIENT}), ("10.0.0.5", 15008), "10.0.0.1"),
    ],
    ids=["address", "source address", "source identity", "expected identities"],
)
async def test_a_tunnel_is_never_shared_across(other: PoolKey) -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    first, second = connect(pool, key_of()), connect(pool, other)
    await settle()
    assert set(dialler.pending) == {key_of(), other}
    tunnels = [dialler.succeed(key_of()), dialler.succeed(other)]
    assert [(await task)[0] for task in (first, second)] == tunnels
    await pool.close()


@pytest.mark.asyncio
async def test_all_who_wait_get_the_error_of_the_dial_and_the_next_one_dials_again() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(5)]
    await settle()
    dialler.fail(KEYS[0], TunnelError("h2_preface_timeout", "no SETTINGS"))
    assert {(await failure_of(task)).code for task in tasks} == {"h2_preface_timeout"}
    again = connect(pool)
    await settle()
    assert dialler.started == 2
    dialler.succeed(KEYS[0])
    await again
    await pool.close()


@pytest.mark.asyncio
async def test_an_error_that_nobody_expected_releases_the_waiters_too() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    tasks = [connect(pool) for _ in range(3)]
    await settle()
    dialler.fail(KEYS[0], ValueError("a defect"))
    assert {(await failure_of(task)).code for task in tasks} == {"dial_failed"}
    await settle()
    assert dialler.pending == {}
    await pool.close()


@pytest.mark.asyncio
async def test_the_fullest_tunnel_with_room_is_taken() -> None:
    """So that what a burst has left over becomes idle, and streams share records."""
    dialler = small(streams_per_tunnel=4)
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(9)]
    await settle()
    for _ in range(3):
        dialler.succeed(KEYS[0])
        await settle()
    await asyncio.gather(*tasks)
    first, second, third = dialler.tunnels

    def counts() -> list[int]:
        return [one.stream_count for one in dialler.tunnels]

    assert counts() == [4, 4, 1]
    for tunnel in (first, first, first, second, second):
        tunnel.end_stream()
    assert counts() == [1, 2, 1]
    for expected in ([1, 3, 1], [1, 4, 1], [2, 4, 1], [3, 4, 1], [4, 4, 1], [4, 4, 2]):
        await connect(pool)
        assert counts() == expected
    third.end_stream()
    third.end_stream()
    second.end_stream()
    assert (await connect(pool))[0] is second
    await pool.close()


@pytest.mark.asyncio
async def test_a_full_tunnel_is_used_again_when_it_drains() -> None:
    dialler = small(tunnels_per_key=1)
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(6)]
    await settle()
    tunnel = dialler.succeed(KEYS[0])
    for done in range(2, 7):
        await settle()
        assert sum(task.done() for task in tasks) == done
        assert tunnel.stream_count == 2
        tunnel.end_stream()
    assert dialler.started == 1
    await pool.close()


@pytest.mark.asyncio
async def test_the_peers_limit_counts_when_it_is_lower_than_ours_and_when_it_changes() -> None:
    dialler = Dialler(PoolLimits(tunnels_per_key=1))
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(4)]
    await settle()
    tunnel = dialler.succeed(KEYS[0], allowed=1)
    await settle()
    assert tunnel.stream_count == 1
    tunnel.allowed = 3
    tunnel.changed()
    await settle()
    assert tunnel.stream_count == 3
    tunnel.allowed = 2
    tunnel.changed()
    tunnel.end_stream()
    await settle()
    assert sum(task.done() for task in tasks) == 3
    tunnel.end_stream()
    await settle()
    assert all(task.done() for task in tasks)
    await pool.close()


@pytest.mark.asyncio
async def test_a_peer_that_takes_no_streams_is_an_error_and_not_a_dial_without_end() -> None:
    """A proxy that shuts down may still accept connections, only to say GOAWAY on each."""
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    task = connect(pool)
    await settle()
    dialler.succeed(KEYS[0], allowed=0)
    assert (await failure_of(task)).code == "tunnel_unusable"
    assert dialler.started == 1
    await pool.close()


@pytest.mark.asyncio
async def test_a_tunnel_that_goes_away_is_not_used_again_but_keeps_its_streams() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    first = connect(pool)
    await settle()
    leaving = dialler.succeed(KEYS[0])
    await first
    leaving.draining = True
    leaving.changed()
    second = connect(pool)
    await settle()
    assert dialler.started == 2
    assert (await_result := dialler.succeed(KEYS[0])) is not leaving
    assert (await second)[0] is await_result
    assert not leaving.is_closed
    assert leaving.stream_count == 1
    await pool.close()


@pytest.mark.asyncio
async def test_a_waiter_that_gives_up_when_it_is_served_leaves_the_place_to_the_next() -> None:
    dialler = small(streams_per_tunnel=1, tunnels_per_key=1)
    pool = dialler.pool()
    first, second, third = (connect(pool) for _ in range(3))
    await settle()
    tunnel = dialler.succeed(KEYS[0])
    await first
    await settle()
    tunnel.end_stream()  # wakes the second
    second.cancel()  # before it could run
    await settle()
    assert second.cancelled()
    assert (await third)[0] is tunnel
    await pool.close()


@pytest.mark.asyncio
async def test_too_many_waiters_are_an_error_for_the_last_ones_only() -> None:
    dialler = Dialler(PoolLimits(waiters_per_key=3))
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(5)]
    await settle()
    assert [(await failure_of(task)).code for task in tasks[3:]] == ["pool_overload"] * 2
    dialler.succeed(KEYS[0])
    await asyncio.gather(*tasks[:3])
    await pool.close()


@pytest.mark.asyncio
async def test_idle_tunnels_are_closed_and_busy_ones_are_not() -> None:
    dialler = Dialler(PoolLimits(idle_timeout=IDLE_TIMEOUT))
    pool = dialler.pool()
    tasks = [connect(pool, key) for key in KEYS[:2]]
    await settle()
    idle, busy = (dialler.succeed(key) for key in KEYS[:2])
    await asyncio.gather(*tasks)
    idle.end_stream(now=10.0)
    pool.tick(10.0 + IDLE_TIMEOUT - 1)
    assert not idle.is_closed
    pool.tick(10.0 + IDLE_TIMEOUT)
    assert idle.is_closed
    assert not busy.is_closed
    assert [tunnel for _, tunnel in pool.tunnels()] == [busy]
    assert busy.ticks == 2
    await pool.close()


@pytest.mark.asyncio
async def test_tunnels_to_addresses_that_are_gone_end_with_their_last_stream() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    tasks = [connect(pool, key) for key in KEYS]
    await settle()
    tunnels = [dialler.succeed(key) for key in KEYS]
    await asyncio.gather(*tasks)
    tunnels[1].end_stream()
    pool.retain(lambda key: key == KEYS[2])
    assert [tunnel.is_closed for tunnel in tunnels] == [False, True, False]
    assert [tunnel.draining for tunnel in tunnels] == [True, True, False]
    tunnels[0].end_stream()
    assert tunnels[0].is_closed
    await pool.close()


@pytest.mark.asyncio
async def test_a_dial_to_an_address_that_is_gone_meanwhile_leaves_no_tunnel() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    task = connect(pool)
    await settle()
    pool.retain(lambda key: False)
    assert (await failure_of(task)).code == "destination_gone"
    tunnel = dialler.succeed(KEYS[0])
    await settle()
    assert tunnel.is_closed
    assert list(pool.tunnels()) == []
    # the address is used again, by a workload of the same identity
    again = connect(pool)
    await settle()
    fresh = dialler.succeed(KEYS[0])
    assert (await again)[0] is fresh
    await pool.close()


@pytest.mark.asyncio
async def test_a_drain_sends_away_who_waits_and_leaves_streams_alone() -> None:
    dialler = small()
    pool = dialler.pool()
    tasks = [connect(pool) for _ in range(3)]
    await settle()
    tunnel = dialler.succeed(KEYS[0])
    await settle()
    pool.drain()
    assert (await failure_of(tasks[2])).code == "pool_draining"
    assert tunnel.stream_count == 2
    late = dialler.succeed(KEYS[0])
    await settle()
    assert late.is_closed
    assert (await failure_of(connect(pool))).code == "pool_draining"
    tunnel.end_stream()
    tunnel.end_stream()
    assert tunnel.is_closed
    await pool.close()


@pytest.mark.asyncio
async def test_close_ends_dials_waiters_and_tunnels() -> None:
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    used, waiting = connect(pool), connect(pool, KEYS[1])
    await settle()
    tunnel = dialler.succeed(KEYS[0])
    await used
    await pool.close()
    assert (await failure_of(waiting)).code == "pool_draining"
    assert dialler.pending == {}
    assert tunnel.failure is not None
    assert list(pool.tunnels()) == []


@pytest.mark.asyncio
async def test_close_ends_what_waits_for_its_peer_only() -> None:
    """Or the socket of a tunnel that ended in order would keep the namespace of a pod that is gone."""
    dialler = Dialler(PoolLimits())
    pool = dialler.pool()
    used = connect(pool)
    await settle()
    tunnel = dialler.succeed(KEYS[0])
    await used
    tunnel.lingers = True
    tunnel.draining = True
    tunnel.end_stream()
    assert list(pool.tunnels()) == []
    pool.tick(1.0)
    await pool.close()
    assert not tunnel.lingers


# -- all at once -------------------------------------------------------------------------------------------------

keys = st.sampled_from(KEYS)
STREAMS_PER_TUNNEL = 3
TUNNELS_PER_KEY = 2
WAITERS_PER_KEY = 8


class PoolMachine(RuleBasedStateMachine):
    """Connections, dials, ends and changes of mind in any order; after each of them everything settles."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.dialler = Dialler(PoolLimits(STREAMS_PER_TUNNEL, TUNNELS_PER_KEY, WAITERS_PER_KEY, IDLE_TIMEOUT))
        self.pool = self.dialler.pool()
        self.tasks: list[tuple[PoolKey, asyncio.Task[Opened]]] = []
        self.drained = False

    def run(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()
            await settle()

        self.loop.run_until_complete(act())
        self.tasks = [(key, task) for key, task in self.tasks if not self.finished(task)]

    @staticmethod
    def finished(task: asyncio.Task[Opened]) -> bool:
        if not task.done():
            return False
        if not task.cancelled():
            error = task.exception()
            assert error is None or isinstance(error, ZtunError), error
        return True

    @property
    def live(self) -> list[FakeTunnel]:
        return [tunnel for tunnel in self.dialler.tunnels if not tunnel.is_closed]

    @property
    def busy(self) -> list[FakeTunnel]:
        return [tunnel for tunnel in self.live if tunnel.streams]

    def connect(self, key: PoolKey) -> None:
        self.tasks.append((key, connect(self.pool, key)))

    @rule(key=keys, count=st.integers(1, 6))
    def connections_come(self, key: PoolKey, count: int) -> None:
        self.run(lambda: [self.connect(key) for _ in range(count)])

    @precondition(lambda self: self.dialler.pending)
    @rule(data=st.data(), allowed=st.sampled_from([0, 1, 2, 100, 100]))
    def dial_succeeds(self, data: st.DataObject, allowed: int) -> None:
        key = data.draw(st.sampled_from(list(self.dialler.pending)))
        self.run(lambda: self.dialler.succeed(key, allowed=allowed))

    @precondition(lambda self: self.dialler.pending)
    @rule(data=st.data())
    def dial_succeeds_but_the_tunnel_is_gone_at_once(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.dialler.pending)))
        self.run(lambda: self.dialler.succeed(key).close())

    @precondition(lambda self: self.dialler.pending)
    @rule(data=st.data())
    def dial_fails(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.dialler.pending)))
        self.run(lambda: self.dialler.fail(key, TunnelError("tunnel_lost", "refused")))

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), newcomers=st.integers(0, 2), gives_up=st.booleans())
    def stream_ends(self, data: st.DataObject, newcomers: int, gives_up: bool) -> None:
        """Somebody new may come in the same moment, and the one whose turn it is may just then give up."""
        tunnel = data.draw(st.sampled_from(self.busy))

        def end() -> None:
            tunnel.end_stream(self.dialler.now)
            if gives_up and self.tasks:
                self.tasks[0][1].cancel()
            for _ in range(newcomers):
                self.connect(tunnel.key)

        self.run(end)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), allowed=st.integers(0, 5))
    def peer_changes_its_limit(self, data: st.DataObject, allowed: int) -> None:
        tunnel = data.draw(st.sampled_from(self.live))
        tunnel.allowed = allowed
        self.run(tunnel.changed)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def peer_goes_away(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.live)).retire)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def tunnel_is_lost(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.live)).close)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def waiter_gives_up(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from([task for _, task in self.tasks])).cancel)

    @rule(seconds=st.sampled_from([1.0, IDLE_TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        self.dialler.now += seconds
        self.run(lambda: self.pool.tick(self.dialler.now))
        for tunnel in self.live:
            assert tunnel.streams or self.dialler.now - tunnel.idle_since < IDLE_TIMEOUT

    @rule(kept=st.sets(keys))
    def mesh_changes(self, kept: set[PoolKey]) -> None:
        self.run(lambda: self.pool.retain(lambda key: key in kept))
        for tunnel in self.live:
            assert tunnel.key in kept or tunnel.draining

    @precondition(lambda self: len(self.dialler.tunnels) > 6)
    @rule()
    def proxy_drains(self) -> None:
        self.drained = True
        self.run(self.pool.drain)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        for key, _ in self.tasks:
            tunnels = [tunnel for tunnel in self.live if tunnel.key == key]
            assert not any(
                tunnel.free_streams and tunnel.stream_count < STREAMS_PER_TUNNEL for tunnel in tunnels
            ), "somebody waits beside a tunnel with room"
            assert key in self.dialler.pending or len(tunnels) >= TUNNELS_PER_KEY, (
                "somebody waits for a tunnel that nobody makes"
            )

    @invariant()
    def no_more_than_allowed(self) -> None:
        for key in KEYS:
            assert sum(waiting == key for waiting, _ in self.tasks) <= WAITERS_PER_KEY
            tunnels = [tunnel for tunnel in self.live if tunnel.key == key]
            assert len(tunnels) <= TUNNELS_PER_KEY

    @invariant()
    def the_pool_knows_its_tunnels(self) -> None:
        known = {id(tunnel) for _, tunnel in self.pool.tunnels()}
        assert known == {id(tunnel) for tunnel in self.live}

    @invariant()
    def nobody_waits_for_a_pool_that_ends(self) -> None:
        if self.drained:
            assert self.tasks == []
            assert all(tunnel.draining for tunnel in self.live)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.pool.close())
        self.run(lambda: None)
        assert self.tasks == []
        assert self.live == []
        assert self.dialler.pending == {}
        self.loop.close()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestPoolUnderAnyUse(PoolMachine.TestCase):  # type: ignore[misc]
    """Collected by pytest."""
