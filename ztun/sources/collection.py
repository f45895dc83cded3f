"""Memory around the building and the letting go of something large."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType

MAX_PARTS = 50_000  # below so many parts, what hangs on each of them is small


@contextmanager
def collection_postponed() -> Iterator[None]:
    """No cycle collection while a snapshot, or a view of one, is built, and none over it afterwards.

    A snapshot has no cycles, but walking its hundred thousands of objects again and again took two thirds of
    the time of building one, and each full collection stops all connections meanwhile.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def let_go(owned: list[object]) -> None:
    """Empty a list whose objects nobody else needs, a part at a time. For a worker thread.

    Freeing a large structure is one step of the interpreter, during which no other thread runs: 50 ms for 10,000
    documents. Here the upper levels are held from outside and dropped parents first, so that each step is small.
    """
    _spread(owned)
    owned.reverse()
    while owned:
        owned.pop()


def _spread(parts: list[object]) -> None:
    """Add what the parts refer to, level by level, until there are many."""
    seen = {id(part) for part in parts}
    begin = 0
    while begin < len(parts) < MAX_PARTS:
        end = len(parts)
        for number in range(begin, end):
            for child in gc.get_referents(parts[number]):
                # a class leads to its module, and that to everything
                if id(child) not in seen and not isinstance(child, type | ModuleType | FunctionType):
                    seen.add(id(child))
                    parts.append(child)
        begin = end
