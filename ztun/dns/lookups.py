"""What the proxy resolves for itself: one lookup of a name at a time, whoever waits for it, and kept for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeAlias

from ztun.errors import DnsError

MAX_NAMES = 4096  # kept, and under way: as many as ztunnel's resolver keeps
KEEP_SECONDS = 5.0
"""The C library does not say how long an answer is good for. Envoy asks as often (dns_refresh_rate), so addresses that
change are followed as closely as there, and a burst of connections costs one lookup."""

Addresses: TypeAlias = tuple[str, ...]
Ask: TypeAlias = Callable[[], Coroutine[Any, Any, Addresses]]


class Lookups:
    """The lookups of a process. ``clock`` gives seconds and never goes back.

    A lookup goes on when nobody waits for it any more: the thread that the C library sits in cannot be called back, so
    one name whose nameserver is silent takes one thread, not all of them. Failures are not kept.
    """

    def __init__(self, clock: Callable[[], float], limit: int = MAX_NAMES) -> None:
        self._clock = clock
        self._limit = limit
        self._under_way: dict[Hashable, asyncio.Task[Addresses]] = {}
        self._found: dict[Hashable, tuple[float, Addresses]] = {}

    async def find(self, name: Hashable, ask: Ask) -> Addresses:
        """What ``ask`` gives for the name, now or a moment ago.

        Raises what ``ask`` raises, and :class:`DnsError` ``dns_overload``.
        """
        known = self._found.get(name)
        if known is not None and self._clock() < known[0]:
            return known[1]
        task = self._under_way.get(name)
        if task is None:
            if len(self._under_way) >= self._limit:
                raise DnsError("dns_overload", f"{self._limit} names are being resolved already")
            task = self._under_way[name] = asyncio.get_running_loop().create_task(ask())
            task.add_done_callback(lambda task: self._ended(name, task))
        await asyncio.wait((task,))  # who is cancelled here leaves it to the others
        return task.result()

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, name: Hashable, task: asyncio.Task[Addresses]) -> None:
        del self._under_way[name]
        if task.cancelled() or task.exception() is not None:
            return
        self._found.pop(name, None)
        if len(self._found) >= self._limit:
            del self._found[next(iter(self._found))]  # the one that was asked for the longest ago
        self._found[name] = self._clock() + KEEP_SECONDS, task.result()
