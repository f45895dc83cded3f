"""How far everything grows, and how often it is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """``seconds`` is for one measurement of latency; wrk takes whole ones."""

    open_connections: tuple[int, ...]
    objects: tuple[int, ...]
    rounds: int
    seconds: float
    wrk_seconds: int


FULL = Scale((1, 10, 100, 1000, 10_000), (10, 100, 1000, 10_000), rounds=3, seconds=0.5, wrk_seconds=1)
QUICK = Scale((1, 100), (10, 100), rounds=1, seconds=0.2, wrk_seconds=1)
