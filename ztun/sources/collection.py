"""Memory around the building and the letting go of something large."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UPPER_LEVELS = 4  # a snapshot, its indices, their contents: below, there is one object of the mesh
LARGE = 1000  # references; freeing so many objects takes less than 0.2 ms
_OWN_REFERENCES = 2  # the variable, and the argument of getrefcount


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

    Freeing a large structure is one step of the interpreter, during which no other thread runs: 90 ms for a mesh of
    10,000 workloads. Here what a part refers to is held while the part itself is freed, and then freed in turn:

    1. of a part that something else refers to, only the reference is dropped;
    2. the upper levels, and below them whatever is large, are taken apart; what is small goes as a whole.
    """
    levels: list[list[object]] = [owned]
    while levels:
        if not levels[-1]:
            levels.pop()
            continue
        part = levels[-1].pop()
        alone = sys.getrefcount(part) <= _OWN_REFERENCES
        children = gc.get_referents(part) if alone else []
        del part
        if len(levels) < UPPER_LEVELS or len(children) > LARGE:
            levels.append(children)
        del children
