"""Names that the proxy resolves for itself: one lookup at a time, answers that are kept for a moment."""

from __future__ import annotations

import asyncio

import pytest

from ztun.dns.lookups import KEEP_SECONDS, Lookups
from ztun.errors import DnsError

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]


class Resolver:
    """Keeps what it is asked, and answers when the test says so."""

    def __init__(self, limit: int = 10) -> None:
        self.now = 100.0
        self.asked: list[str] = []
        self.answers: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self.lookups = Lookups(lambda: self.now, limit)

    def want(self, name: str) -> asyncio.Task[tuple[str, ...]]:
        """Somebody wants to know."""
        return asyncio.ensure_future(self.lookups.find(name, lambda: self.ask(name)))

    async def ask(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        self.answers[name] = asyncio.get_running_loop().create_future()
        return await self.answers[name]

    async def until_asked(self, count: int) -> None:
        while len(self.asked) < count:
            await asyncio.sleep(0)

    async def known(self, name: str, *addresses: str) -> None:
        """It is asked for once more and answered."""
        count, wanting = len(self.asked), self.want(name)
        await self.until_asked(count + 1)
        self.answers[name].set_result(addresses)
        assert await wanting == addresses


async def test_who_asks_for_the_same_name_waits_for_the_same_answer() -> None:
    resolver = Resolver()
    waiting = [resolver.want("a") for _ in range(50)]
    other = resolver.want("b")
    await resolver.until_asked(2)
    resolver.answers["a"].set_result(("192.0.2.1",))
    resolver.answers["b"].set_result(("192.0.2.2",))
    assert await asyncio.gather(*waiting) == [("192.0.2.1",)] * 50
    assert await other == ("192.0.2.2",)
    assert resolver.asked == ["a", "b"]


async def test_a_silent_nameserver_is_asked_once_whoever_gives_up() -> None:
    """The C library sits in its thread, whatever becomes of those who wait."""
    resolver = Resolver()
    for _ in range(3):
        waiting = [resolver.want("silent") for _ in range(5)]
        await resolver.until_asked(1)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    last = resolver.want("silent")
    await asyncio.sleep(0)
    resolver.answers["silent"].set_result(("192.0.2.1",))
    assert await last == ("192.0.2.1",)
    assert resolver.asked == ["silent"]


async def test_an_answer_is_kept_for_a_moment() -> None:
    resolver = Resolver()
    await resolver.known("a", "192.0.2.1")
    resolver.now += KEEP_SECONDS * 0.9
    assert await resolver.want("a") == ("192.0.2.1",)
    resolver.now += KEEP_SECONDS * 0.2
    await resolver.known("a", "192.0.2.2")
    assert await resolver.want("a") == ("192.0.2.2",)


async def test_a_failure_is_told_to_all_and_not_kept() -> None:
    resolver = Resolver()
    waiting = [resolver.want("a") for _ in range(3)]
    await resolver.until_asked(1)
    resolver.answers["a"].set_exception(DnsError("dns_lookup", "a does not exist"))
    assert [str(one) for one in await asyncio.gather(*waiting, return_exceptions=True)] == [
        "a does not exist"
    ] * 3
    await resolver.known("a", "192.0.2.1")


async def test_no_more_names_than_allowed_are_kept() -> None:
    resolver = Resolver(limit=3)
    for name in "abcd":
        await resolver.known(name, "192.0.2.1")
    assert await resolver.want("b") == ("192.0.2.1",)
    await resolver.known("a", "192.0.2.1")
    await resolver.known("b", "192.0.2.1")


async def test_no_more_names_than_allowed_are_under_way() -> None:
    resolver = Resolver(limit=3)
    waiting = [resolver.want(name) for name in "abc"]
    await resolver.until_asked(3)
    with pytest.raises(DnsError) as caught:
        await resolver.want("d")
    assert caught.value.code == "dns_overload"
    for answer in resolver.answers.values():
        answer.set_result(("192.0.2.1",))
    await asyncio.gather(*waiting)
    await resolver.known("d", "192.0.2.1")


async def test_closing_ends_what_is_under_way() -> None:
    resolver = Resolver()
    waiting = resolver.want("a")
    await resolver.until_asked(1)
    await resolver.lookups.close()
    assert resolver.answers["a"].cancelled()
    with pytest.raises(asyncio.CancelledError):
        await waiting
