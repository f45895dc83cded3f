"""Something large is let go in parts: all of it, and nothing that is still in use."""

from __future__ import annotations

import gc
import weakref
from types import MappingProxyType, SimpleNamespace

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


def test_what_others_hold_is_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []

    def referents(part: object) -> list[object]:
        looked_at.append(type(part))
        return gc.get_referents(part)

    monkeypatch.setattr(collection, "gc", SimpleNamespace(get_referents=referents))
    shared = Node([1], [2])
    let_go([[gc, Node.__init__, Node, shared, shared]])
    assert looked_at == [list]


def test_a_cycle_is_no_obstacle() -> None:
    one = Node()
    one.children = (Node(one),)
    owned: list[object] = [one]
    del one
    let_go(owned)
    assert owned == []


def test_no_two_objects_of_a_large_mesh_die_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    count = collection.LARGE + 1
    step, deaths = 0, []

    def referents(part: object) -> list[object]:
        nonlocal step
        step += 1
        return gc.get_referents(part)

    class Mortal:
        def __init__(self) -> None:
            self.labels = {"app": [1, 2, 3]}

        def __del__(self) -> None:
            deaths.append(step)

    monkeypatch.setattr(collection, "gc", SimpleNamespace(get_referents=referents))
    objects = {number: Mortal() for number in range(count)}
    indices = [MappingProxyType(objects), {"by name": list(objects.values())}]
    del objects
    owned: list[object] = [Node(*indices)]
    del indices
    let_go(owned)
    assert len(deaths) == len(set(deaths)) == count


def test_collection_goes_on_afterwards() -> None:
    assert gc.isenabled()
    with collection_postponed():
        assert not gc.isenabled()
        with collection_postponed():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
