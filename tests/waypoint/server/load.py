"""Clients that never pause, so that a change of configuration always meets connections in every state."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.peers.traffic import Address
from tests.waypoint.server.ground import ask
from ztun.lab.client import talk


class Load:
    """``count`` clients of one address: half of them connect anew for every line, half keep their connection.

    ``lost`` counts connections that ended without an answer. ``kept`` has the words that the server of each kept
    connection has said. Raise nothing, so that the test can look at the end.
    """

    def __init__(self, address: Address, count: int) -> None:
        self._address = address
        self._count = count
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self.lost = 0
        self.rounds = [0] * (count // 2)
        self.kept: list[set[str]] = [set() for _ in range(count // 2)]

    async def __aenter__(self) -> Self:
        for number in range(self._count // 2):
            self._tasks.append(asyncio.create_task(self._again(number)))
            self._tasks.append(asyncio.create_task(self._keep(number)))
        await self.turn()
        await self._until(lambda: all(self.kept))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def turn(self) -> None:
        """Wait until every client has begun and ended a connection since the call."""
        before = list(self.rounds)
        await self._until(lambda: all(now > then + 1 for now, then in zip(self.rounds, before, strict=True)))

    async def answers(self) -> Counter[str]:
        """Who answers connections that begin now; as many as there are clients."""
        found = await asyncio.gather(*(ask(self._address) for _ in range(self._count)))
        return Counter(_word(answer) for answer in found)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.wait()

    async def _again(self, number: int) -> None:
        while not self._stop.is_set():
            self.lost += await ask(self._address) is None
            self.rounds[number] += 1
            self._tell()

    async def _keep(self, number: int) -> None:
        async with talk(*self._address) as conversation:
            while not self._stop.is_set():
                answer = await conversation.ask("kept")
                self.kept[number].add(_word(answer))
                self._tell()
                if answer is None:
                    self.lost += 1
                    return


def _word(answer: str | None) -> str:
    return answer.split()[0] if answer else "(closed)"
