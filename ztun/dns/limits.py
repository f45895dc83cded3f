"""What bounds the DNS proxy: how many queries and connections at once, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DnsLimits:
    """Times in seconds, the rest are numbers of one pod unless they say otherwise."""

    queries: int = 200
    """Under way at once: each takes a socket for 5 s at most, so a pod is free to ask for 40 names a second that nobody
    answers."""
    queries_of_process: int = 2000
    """Of all pods: ten at their limit, well within the descriptors of a process."""
    connections: int = 32
    """TCP connections; a resolver uses one."""
    pipelined: int = 8
    """Queries of one connection that wait for their answers; then it is not read any further."""
    idle: float = 5.0
    """ztunnel's for TCP; from the last whole query or answer, so that slow bytes buy no time."""
    exchange: float = 5.0
    """ztunnel's for an answer from outside; after that the C library asks again by itself."""
    patience: float = 1.5
    """Until the next nameserver is asked as well: all three have their turn within the 5 s."""
    stray_answers: int = 32
    """Answers to other questions, per question; whoever sends more is guessing ids."""


class InFlight:
    """A number of places. ``within`` is the larger whole of which this is a part."""

    def __init__(self, limit: int, name: str, within: InFlight | None = None) -> None:
        self.name = name
        self.count = 0
        self._limit = limit
        self._within = within

    def take(self) -> InFlight | None:
        """Take a place; gives the part that has none left, or None when it was taken."""
        if self.count >= self._limit:
            return self
        if self._within is not None and (full := self._within.take()) is not None:
            return full
        self.count += 1
        return None

    def give_back(self) -> None:
        """Leave the place."""
        self.count -= 1
        if self._within is not None:
            self._within.give_back()
