"""Something large is let go in parts: all of it, and nothing that is still in use."""

from __future__ import annotations

import gc
import weakref

import pytest

from ztun.sources import collection
from ztun.sources.collection import collection_postponed, let_go

pytestmark = pytest.mark.unit


class Node:
    def __init__(self, *children: object) -> None:
        self.children = children


def test_everything_is_freed_and_what_others_hold_is_not() -> None:
    shared = Node()
    leaves = [Node() for _ in range(100)]
    root = Node({"a": leaves, "b": shared}, (Node(leaves),))
    seen = [weakref.ref(node) for node in (root, *leaves)]
    owned: list[object] = [root]
    del root, leaves
    let_go(owned)
    assert owned == []
    assert [ref() for ref in seen] == [None] * len(seen)
    assert shared.children == ()


def test_classes_and_modules_are_left_alone() -> None:
    parts: list[object] = [Node(gc, Node.__init__, Node)]
    collection._spread(parts)
    assert len(parts) < 10


def test_a_cycle_is_no_obstacle() -> None:
    one = Node()
    one.children = (Node(one),)
    owned: list[object] = [one]
    del one
    let_go(owned)
    assert owned == []


def test_below_a_bound_the_parts_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "MAX_PARTS", 10)
    parts: list[object] = [[[index] for index in range(1000, 1020)]]
    collection._spread(parts)
    assert len(parts) == 21, "one level is enough"


def test_collection_goes_on_afterwards() -> None:
    assert gc.isenabled()
    with collection_postponed():
        assert not gc.isenabled()
        with collection_postponed():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
