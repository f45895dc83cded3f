"""Who is told of what, and how often."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import pytest_asyncio

from tests.ztun.proxy.mesh import until
from ztun.net.poller import BROKEN, READABLE, WRITABLE, Poller

pytestmark = pytest.mark.net

TURNS = 20  # enough for whatever is due to come


@pytest_asyncio.fixture
async def poller() -> AsyncIterator[Poller]:
    made = Poller(asyncio.get_running_loop())
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_events_are_told_until_they_are_dealt_with(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    told: list[int] = []
    poller.watch(ours.fileno(), READABLE, told.append)
    await turns()
    assert not told
    theirs.send(b"x")
    await until(lambda: len(told) > 1)
    assert set(told) == {READABLE}
    ours.recv(1)
    await turns()
    count = len(told)
    await turns()
    assert len(told) == count


@pytest.mark.asyncio
async def test_other_events_may_be_asked_for_later(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    told: list[int] = []
    poller.watch(ours.fileno(), READABLE, told.append)
    poller.change(ours.fileno(), WRITABLE)
    theirs.send(b"x")
    await until(lambda: bool(told))
    assert set(told) == {WRITABLE}
    poller.change(ours.fileno(), 0)
    await turns()
    told.clear()
    await turns()
    assert not told


@pytest.mark.asyncio
async def test_a_broken_socket_is_told_of_though_nothing_was_asked(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    told: list[int] = []
    poller.watch(ours.fileno(), 0, told.append)
    theirs.close()
    await until(lambda: bool(told))
    assert told[0] & BROKEN


@pytest.mark.asyncio
async def test_who_is_ignored_hears_nothing_and_may_come_again(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    told: list[int] = []
    theirs.send(b"x")
    poller.watch(ours.fileno(), READABLE, told.append)
    poller.ignore(ours.fileno())
    poller.ignore(ours.fileno())
    await turns()
    assert not told
    poller.watch(ours.fileno(), READABLE, told.append)
    await until(lambda: bool(told))


@pytest.mark.asyncio
async def test_a_number_that_is_used_again_belongs_to_the_new_socket(poller: Poller) -> None:
    """A descriptor that was closed is the next one's number, also in the middle of a turn."""
    first, second = [], []
    old, peer = socket.socketpair()
    with peer:
        number = old.fileno()
        poller.watch(number, READABLE, first.append)
        peer.send(b"x")
        poller.forget(number)
        old.close()
        new, other = socket.socketpair()
        with closing(new), closing(other):
            assert number in (new.fileno(), other.fileno())
            reused, writer = (new, other) if new.fileno() == number else (other, new)
            poller.watch(number, READABLE, second.append)
            await turns()
            assert not second
            writer.send(b"y")
            await until(lambda: bool(second))
            poller.forget(reused.fileno())
    assert not first


@pytest.mark.asyncio
async def test_work_of_a_turn_is_done_once_after_its_events(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    seen: list[str] = []

    def ready(ours: socket.socket) -> None:
        ours.recv(1)
        seen.append("event")
        if seen.count("event") == 1:
            poller.after_turn(lambda: seen.append("after"))

    for ours, theirs in pairs:
        theirs.send(b"x")
        poller.watch(ours.fileno(), READABLE, lambda _, ours=ours: ready(ours))  # type: ignore[misc]
    await until(lambda: "after" in seen and seen.count("event") == 3)
    assert seen == ["event", "event", "event", "after"]
    for ours, theirs in pairs:
        poller.forget(ours.fileno())
        ours.close()
        theirs.close()


@pytest.mark.asyncio
async def test_work_without_a_turn_is_done_soon_and_may_ask_for_more(poller: Poller) -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(len(seen))
        if len(seen) < 3:
            poller.after_turn(work)

    poller.after_turn(work)
    assert not seen
    await until(lambda: len(seen) == 3)


@pytest.mark.asyncio
async def test_an_error_of_one_is_reported_and_the_others_are_told(poller: Poller) -> None:
    reported: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    good, bad = socket.socketpair(), socket.socketpair()
    told: list[int] = []

    def fail(_events: int) -> None:
        bad[0].recv(1)
        raise ValueError("a test")

    poller.watch(bad[0].fileno(), READABLE, fail)
    poller.watch(good[0].fileno(), READABLE, told.append)
    for pair in (bad, good):
        pair[1].send(b"x")
    await until(lambda: bool(reported) and bool(told))
    assert isinstance(reported[0], ValueError)
    for one in (*good, *bad):
        poller.forget(one.fileno())
        one.close()


@pytest.mark.asyncio
async def test_what_fails_at_the_end_of_a_turn_costs_nobody_else(poller: Poller) -> None:
    reports: list[BaseException] = []
    poller.loop.set_exception_handler(lambda _, context: reports.append(context["exception"]))
    done: list[str] = []

    def fail() -> None:
        raise ValueError("of one tunnel")

    poller.after_turn(fail)
    poller.after_turn(lambda: done.append("the other"))
    await until(lambda: bool(done))
    assert [str(one) for one in reports] == ["of one tunnel"]
