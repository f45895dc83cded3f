from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
import pytest_asyncio

from certs.authority import CertificateAuthority, create_authority
from certs.errors import CertError, IssuerError
from certs.issuers import Change, Issued
from certs.renewal import MAX_RETRY_SECONDS
from certs.request import build_request, new_key
from certs.spiffe import SpiffeId
from certs.store import MAX_BACKGROUND_FETCHES, MAX_FETCHES, RECHECK_SECONDS, CertificateStore
from tests.certs.conftest import Clock, MemoryIssuer, workload

pytestmark = pytest.mark.unit

A, B = workload("a"), workload("b")
DOWN = IssuerError("ca_unreachable", "the CA is away", hint="start it")


class Pauses:
    """The wait of the renewal loop: hands the test each pause, and goes on when the test says so."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[float] = asyncio.Queue()
        self._go: asyncio.Queue[None] = asyncio.Queue()

    async def wait(self, wake: asyncio.Event, seconds: float) -> None:
        if wake.is_set():
            return
        await self._asked.put(seconds)
        go = asyncio.ensure_future(self._go.get())
        woken = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait({go, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (go, woken):
                task.cancel()
            await asyncio.gather(go, woken, return_exceptions=True)

    async def idle(self) -> float:
        """Wait until the loop has nothing to do; give how long it would sleep."""
        return await self._asked.get()

    async def round(self) -> float:
        """Let the time be over; give the next pause once everything due has been done."""
        self._go.put_nowait(None)
        return await self.idle()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest_asyncio.fixture
async def store(
    issuer: MemoryIssuer, clock: Clock, rng: random.Random, pauses: Pauses
) -> AsyncIterator[CertificateStore]:
    made = CertificateStore(issuer, now=clock, rng=rng, wait=pauses.wait)
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def running(store: CertificateStore) -> AsyncIterator[None]:
    task = asyncio.create_task(store.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_certificate_is_fetched_once_and_kept(store: CertificateStore, issuer: MemoryIssuer) -> None:
    assert store.peek(A) is None
    first = await store.get(A)
    assert first.identity == A
    assert first.chain[0].public_key() == first.key.public_key()
    assert await store.get(A) is first
    assert store.peek(A) is first
    assert issuer.asked == [A]
    assert store.bundle.roots == issuer.authority.roots


@pytest.mark.asyncio
async def test_callers_share_one_fetch_and_one_giving_up_takes_nothing_from_the_others(
    store: CertificateStore, issuer: MemoryIssuer
) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait_at_gate() -> None:
        entered.set()
        await gate.wait()

    issuer.gate = wait_at_gate
    callers = [asyncio.create_task(store.get(A)) for _ in range(50)]
    await entered.wait()
    callers[0].cancel()
    gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert len({id(result) for result in results[1:]}) == 1
    assert results[1] is store.peek(A)
    assert issuer.asked == [A]


@pytest.mark.asyncio
async def test_fetches_at_once_are_bounded(store: CertificateStore, issuer: MemoryIssuer) -> None:
    gate, full = asyncio.Event(), asyncio.Event()

    async def wait_at_gate() -> None:
        if issuer.running == MAX_FETCHES:
            full.set()
        await gate.wait()

    issuer.gate = wait_at_gate
    callers = [asyncio.create_task(store.get(workload(f"w{n}"))) for n in range(30)]
    await full.wait()
    assert issuer.running == MAX_FETCHES
    gate.set()
    await asyncio.gather(*callers)
    assert issuer.most_running == MAX_FETCHES
    assert len(issuer.asked) == 30


@pytest.mark.asyncio
async def test_renewals_leave_room_for_a_connection_that_waits(
    store: CertificateStore, issuer: MemoryIssuer, pauses: Pauses
) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait_at_gate() -> None:
        if issuer.running == MAX_BACKGROUND_FETCHES:
            entered.set()
        await gate.wait()

    issuer.gate = wait_at_gate
    store.prefetch([workload(f"w{n}") for n in range(30)])
    async with running(store):
        await entered.wait()
        issuer.gate = None
        urgent = await store.get(workload("urgent"))
        assert urgent.identity == workload("urgent")
        assert len(issuer.asked) == MAX_BACKGROUND_FETCHES + 1
        gate.set()
        while any(store.peek(workload(f"w{n}")) is None for n in range(30)):
            await pauses.idle()


@pytest.mark.asyncio
async def test_expired_certificate_is_never_handed_out(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock
) -> None:
    certificate = await store.get(A)
    clock.at = certificate.not_after - timedelta(microseconds=1)
    assert store.peek(A) is certificate
    clock.at = certificate.not_after
    assert store.peek(A) is None
    issuer.error = DOWN
    with pytest.raises(CertError) as raised:
        await store.get(A)
    assert raised.value.code == "ca_unreachable"
    assert store.entries()[0].state == "Unavailable: the CA is away"


@pytest.mark.asyncio
async def test_failing_identity_backs_off_alone(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock
) -> None:
    await store.start()
    issuer.error = DOWN
    for _ in range(5):
        with pytest.raises(CertError) as raised:
            await store.get(A)
        assert (raised.value.code, raised.value.hint) == ("ca_unreachable", "start it")
    assert issuer.asked == [A], "while it backs off the issuer is left alone"
    issuer.error = None
    assert (await store.get(B)).identity == B
    clock.advance(seconds=1.3)
    assert (await store.get(A)).identity == A


@pytest.mark.asyncio
async def test_renewal_at_half_life_on_the_wall_clock(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    first = await store.get(A)
    async with running(store):
        assert await pauses.idle() == RECHECK_SECONDS, "no long look away from the clock"
        clock.at = first.not_before + (first.not_after - first.not_before) / 2 - timedelta(seconds=3)
        assert await pauses.round() == 3.0
        assert store.peek(A) is first
        clock.advance(seconds=3)
        await pauses.round()
        renewed = store.peek(A)
    assert renewed is not None
    assert renewed.generation > first.generation
    assert renewed.key is not first.key
    assert renewed.not_after > first.not_after


@pytest.mark.asyncio
async def test_machine_that_slept_renews_at_once(
    store: CertificateStore, clock: Clock, pauses: Pauses
) -> None:
    await store.get(A)
    async with running(store):
        await pauses.idle()
        clock.advance(days=30)
        assert store.peek(A) is None
        await pauses.round()
        assert store.peek(A) is not None


@pytest.mark.asyncio
async def test_clock_that_was_ahead_when_a_fetch_failed_delays_nothing(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    kept = await store.get(B)
    clock.advance(days=365)
    issuer.error = DOWN
    for identity in (A, B):
        with pytest.raises(CertError):
            await store.get(identity)
    issuer.error = None
    clock.advance(days=-365)
    assert store.peek(B) is kept
    assert (await store.get(A)).identity == A
    async with running(store):
        while store.peek(B) is kept:
            await pauses.idle()


@pytest.mark.asyncio
async def test_failed_reload_while_the_clock_was_ahead_is_tried_again(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    await store.start()
    async with running(store):
        await pauses.idle()
        assert issuer.changed is not None
        clock.advance(days=365)
        issuer.error = DOWN
        issuer.changed(Change.TRUST)
        await pauses.idle()
        issuer.error = None
        clock.advance(days=-365)
        issuer.authority = issuer.authority.revoke([1], now=clock())
        await pauses.round()
        assert store.bundle.revokes_anything


@pytest.mark.asyncio
async def test_certificate_that_was_fetched_while_the_clock_was_ahead_is_fetched_again(
    store: CertificateStore, clock: Clock, pauses: Pauses
) -> None:
    clock.advance(days=365)
    early = await store.get(A)
    clock.advance(days=-365)
    assert store.peek(A) is None
    assert store.entries()[0].state == "Unavailable: the certificate is not valid yet"
    renewed = await store.get(A)
    assert renewed is not early
    assert renewed.not_before <= clock() < renewed.not_after
    clock.advance(days=365)
    await store.get(B)
    clock.advance(days=-365)
    async with running(store):
        while store.peek(B) is None:
            await pauses.idle()


@pytest.mark.asyncio
async def test_valid_certificate_is_kept_while_renewal_fails_and_the_last_try_is_at_its_expiry(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    first = await store.get(A)
    issuer.error = DOWN
    async with running(store):
        await pauses.idle()
        clock.at = first.not_after - timedelta(hours=1)
        tries = 0
        while clock.at < first.not_after:
            before = len(issuer.asked)
            pause = await pauses.round()
            tries += len(issuer.asked) - before
            assert store.peek(A) is first
            assert 0 < pause <= RECHECK_SECONDS
            clock.advance(seconds=pause)
        assert clock.at == first.not_after
        assert store.peek(A) is None
        assert 20 < tries < 60, "an hour at delays growing to 150 s"
        issuer.error = None
        await pauses.round()
        assert store.peek(A) is not None


@pytest.mark.asyncio
async def test_success_resets_the_backoff(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock
) -> None:
    await store.start()
    issuer.error = DOWN
    for _ in range(8):
        with pytest.raises(CertError):
            await store.get(A)
        clock.advance(seconds=200)
    issuer.error = None
    certificate = await store.get(A)
    issuer.error = DOWN
    clock.at = certificate.not_after
    with pytest.raises(CertError):
        await store.get(A)
    issuer.error = None
    clock.advance(seconds=1.3)
    assert await store.get(A)


@pytest.mark.asyncio
async def test_forgotten_identity_is_neither_kept_nor_renewed(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    await store.get(A)
    kept = await store.get(B)
    store.retain([B])
    assert store.peek(A) is None
    assert store.peek(B) is kept
    assert [entry.identity for entry in store.entries()] == [B]
    async with running(store):
        await pauses.idle()
        clock.advance(hours=13)
        await pauses.round()
    assert issuer.asked == [A, B, B]


@pytest.mark.asyncio
async def test_caller_of_an_identity_forgotten_meanwhile_is_told(
    store: CertificateStore, issuer: MemoryIssuer
) -> None:
    entered = asyncio.Event()

    async def forever() -> None:
        entered.set()
        await asyncio.Event().wait()

    issuer.gate = forever
    caller = asyncio.create_task(store.get(A))
    await entered.wait()
    store.retain([])
    with pytest.raises(CertError) as raised:
        await caller
    assert raised.value.code == "identity_forgotten"
    assert issuer.running == 0


@pytest.mark.asyncio
async def test_close_ends_what_is_under_way(store: CertificateStore, issuer: MemoryIssuer) -> None:
    entered = asyncio.Event()

    async def forever() -> None:
        entered.set()
        await asyncio.Event().wait()

    issuer.gate = forever
    caller = asyncio.create_task(store.get(A))
    await entered.wait()
    await store.close()
    with pytest.raises(CertError):
        await caller
    with pytest.raises(CertError) as raised:
        await store.get(A)
    assert raised.value.code == "store_closed"


# What an issuer must not answer.


class Lying(MemoryIssuer):
    """Answers every request with what ``answer`` makes of it."""

    answer: Callable[[], Issued]

    async def obtain(self, identity: SpiffeId) -> Issued:
        return self.answer()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ("identity", "ca_wrong_identity"),
        ("key", "ca_wrong_key"),
        ("expired", "ca_expired_certificate"),
        ("early", "ca_not_yet_valid"),
        ("nothing", "ca_no_certificate"),
        ("mistake", "ca_failed"),
    ],
)
async def test_wrong_answers_are_refused(clock: Clock, rng: random.Random, lie: str, code: str) -> None:
    authority = create_authority(now=clock() - timedelta(days=10))
    issuer = Lying(clock, authority)

    def answer() -> Issued:
        key, other = new_key(), new_key()
        identity = B if lie == "identity" else A
        at = clock() + {"expired": -timedelta(days=2), "early": timedelta(hours=1)}.get(lie, timedelta())
        chain = authority.sign(build_request(key, identity), identity, now=at)
        if lie == "mistake":
            raise ZeroDivisionError
        return Issued(() if lie == "nothing" else chain, other if lie == "key" else key)

    issuer.answer = answer
    store = CertificateStore(issuer, now=clock, rng=rng)
    with pytest.raises(CertError) as raised:
        await store.get(A)
    assert raised.value.code == code
    await store.close()


# The trust bundle.


@pytest.mark.asyncio
async def test_bundle_changes_reach_the_proxy_and_nothing_else_does(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    seen: list[int] = []
    store.on_bundle(lambda: seen.append(store.bundle.generation))
    certificate = await store.get(A)
    async with running(store):
        await pauses.idle()
        assert issuer.changed is not None
        issuer.changed(Change.TRUST)
        await pauses.idle()
        assert seen == [], "the same trust is no change"
        issuer.authority = issuer.authority.rotate(now=clock())
        issuer.changed(Change.TRUST)
        await pauses.idle()
        assert seen == [2]
        assert len(store.bundle.roots) == 2
        assert store.peek(A) is certificate, "certificates of the old root stay in use"
        issuer.error = DOWN
        issuer.changed(Change.TRUST)
        await pauses.idle()
        assert seen == [2]
        assert len(store.bundle.roots) == 2


@pytest.mark.asyncio
async def test_mistake_of_an_issuer_costs_no_more_than_one_reload(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    await store.start()
    async with running(store):
        await pauses.idle()
        assert issuer.changed is not None
        issuer.error = ZeroDivisionError()
        issuer.changed(Change.TRUST)
        await pauses.idle()
        assert store.bundle.generation == 1
        issuer.error = None
        issuer.authority = issuer.authority.rotate(now=clock())
        issuer.changed(Change.TRUST)
        await pauses.idle()
        assert store.bundle.generation == 2


@pytest.mark.asyncio
async def test_failed_reload_of_the_trust_is_tried_again_less_and_less_often(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    await store.start()
    async with running(store):
        await pauses.idle()
        assert issuer.changed is not None
        issuer.authority = issuer.authority.revoke([1], now=clock())
        issuer.error = DOWN
        issuer.changed(Change.TRUST)
        waits = [await pauses.idle()]
        while len(waits) < 12:
            clock.advance(seconds=waits[-1])
            waits.append(await pauses.round())
        assert waits[0] < 2
        assert waits[-1] == RECHECK_SECONDS
        assert not store.bundle.revokes_anything
        issuer.error = None
        clock.advance(seconds=MAX_RETRY_SECONDS)
        assert await pauses.round() == RECHECK_SECONDS
        assert store.bundle.revokes_anything


@pytest.mark.asyncio
async def test_word_of_a_change_does_not_wait_for_the_next_try(
    store: CertificateStore, issuer: MemoryIssuer, clock: Clock, pauses: Pauses
) -> None:
    await store.start()
    async with running(store):
        await pauses.idle()
        assert issuer.changed is not None
        issuer.error = DOWN
        issuer.changed(Change.TRUST)
        await pauses.idle()
        issuer.error = None
        issuer.authority = issuer.authority.revoke([1], now=clock())
        issuer.changed(Change.TRUST)
        await pauses.idle()
        assert store.bundle.revokes_anything


class Blind(MemoryIssuer):
    """Its first watch fails."""

    watches: int = 0

    async def watch(self, changed: Callable[[Change], None]) -> None:
        self.watches += 1
        if self.watches == 1:
            raise ZeroDivisionError
        await super().watch(changed)


@pytest.mark.asyncio
async def test_watch_that_failed_is_started_again_and_everything_is_asked_for_anew(
    clock: Clock, authority: CertificateAuthority, rng: random.Random
) -> None:
    issuer = Blind(clock, authority)

    async def at_once(wake: asyncio.Event, seconds: float) -> None:
        await asyncio.sleep(0)

    store = CertificateStore(issuer, now=clock, rng=rng, wait=at_once)
    first = await store.get(A)
    issuer.authority = authority.rotate(now=clock())
    async with running(store):
        while issuer.changed is None or store.bundle.generation == 1 or store.peek(A) is first:
            await asyncio.sleep(0)
    await store.close()


@pytest.mark.asyncio
async def test_changed_certificates_are_fetched_again(
    store: CertificateStore, issuer: MemoryIssuer, pauses: Pauses
) -> None:
    first = await store.get(A)
    async with running(store):
        await pauses.idle()
        assert issuer.changed is not None
        issuer.changed(Change.CERTIFICATES)
        while store.peek(A) is first:
            await pauses.idle()
    assert issuer.asked == [A, A]


@pytest.mark.asyncio
async def test_nothing_is_trusted_before_the_bundle_is_there(
    store: CertificateStore, issuer: MemoryIssuer
) -> None:
    with pytest.raises(CertError) as raised:
        _ = store.bundle
    assert raised.value.code == "bundle_missing"
    issuer.error = DOWN
    with pytest.raises(CertError) as raised:
        await store.get(A)
    assert raised.value.code == "ca_unreachable"
    issuer.error = None
    assert await store.get(A)


@pytest.mark.asyncio
async def test_dump_shows_states_and_no_key(store: CertificateStore, issuer: MemoryIssuer) -> None:
    certificate = await store.get(B)
    store.prefetch([A])
    assert [(entry.identity, entry.state) for entry in store.entries()] == [
        (A, "Initializing"),
        (B, "Available"),
    ]
    assert store.entries()[1].chain == certificate.chain
    assert "key" not in repr(certificate)
