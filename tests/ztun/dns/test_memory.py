"""Remembered decisions: only while they hold, and never without end."""

from __future__ import annotations

import dns.message
import pytest

from ztun.dns.local import LocalAnswer
from ztun.dns.memory import MAX_DECISIONS, MAX_REMEMBERED_BYTES, Decision, Memory
from ztun.dns.messages import read_query

pytestmark = pytest.mark.unit


def wire(name: str = "web", number: int = 1, **options: object) -> bytes:
    return dns.message.make_query(name, "A", id=number, **options).to_wire()  # type: ignore[arg-type]


def decided(query: bytes, endpoints: int = 1) -> Decision:
    return Decision(read_query(query), LocalAnswer(query[:2] + b"answer", "success", endpoints))


def test_a_decision_gets_the_id_of_the_query() -> None:
    memory = Memory()
    memory.keep(decided(wire()), "now", udp=True)
    found = memory.recall(wire(number=0xBEEF), "now", udp=True)
    assert found is not None
    assert found.answer is not None
    assert found.answer.wire == b"\xbe\xefanswer"
    memory.keep(Decision(read_query(wire("out")), None), "now", udp=True)
    foreign = memory.recall(wire("out", 0xBEEF), "now", udp=True)
    assert foreign is not None
    assert (foreign.answer, foreign.query.wire, foreign.query.header.id) == (
        None,
        wire("out", 0xBEEF),
        0xBEEF,
    )
    assert foreign.query.domain == "out."
    alias = LocalAnswer(b"", "alias of a name outside the mesh", outside="cdn.example")
    memory.keep(Decision(read_query(wire("cdn")), alias), "now", udp=True)
    followed = memory.recall(wire("cdn", 0xBEEF), "now", udp=True)
    assert followed is not None
    assert (followed.answer, followed.query.header.id) == (alias, 0xBEEF)


def test_only_the_same_bytes_under_the_same_circumstances() -> None:
    memory = Memory()
    memory.keep(decided(wire()), "now", udp=True)
    for other in (wire("Web"), wire("web", use_edns=0), wire() + b"\0", b"", b"\0"):
        assert memory.recall(other, "now", udp=True) is None
    assert memory.recall(wire(), "now", udp=False) is None
    assert memory.recall(wire(), "later", udp=True) is None
    assert memory.recall(wire(), "now", udp=True) is not None
    memory.keep(decided(wire("b")), "later", udp=True)
    assert memory.recall(wire(), "now", udp=True) is None
    assert memory.recall(wire(), "later", udp=True) is None


def test_several_addresses_and_long_queries_are_not_remembered() -> None:
    memory = Memory()
    memory.keep(decided(wire(), endpoints=2), "now", udp=True)
    assert memory.recall(wire(), "now", udp=True) is None
    long = wire("b").ljust(MAX_REMEMBERED_BYTES + 1, b"\0")
    memory.keep(Decision(read_query(long), None), "now", udp=True)
    assert memory.recall(long, "now", udp=True) is None


def test_it_does_not_grow_without_end() -> None:
    memory = Memory()
    for number in range(3 * MAX_DECISIONS):
        memory.keep(decided(wire(f"n{number}")), "now", udp=True)
        assert memory.recall(wire(f"n{number}"), "now", udp=True) is not None
    kept = sum(
        memory.recall(wire(f"n{number}"), "now", udp=True) is not None for number in range(3 * MAX_DECISIONS)
    )
    assert 0 < kept <= MAX_DECISIONS
