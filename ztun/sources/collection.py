"""Garbage collection around the building of something large."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
