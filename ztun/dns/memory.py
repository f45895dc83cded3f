"""What was decided about the latest queries of a pod: applications ask for the same few names over and over."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ztun.dns.local import LocalAnswer
from ztun.dns.messages import Query, read_header

MAX_DECISIONS = 256  # of one pod: more than the names an application uses, and at most 300 KB
MAX_REMEMBERED_BYTES = 512  # of a query; longer ones are unusual
_ID_BYTES = 2


@dataclass(frozen=True, slots=True)
class Decision:
    """A query, and what the mesh answers; None when it is for others to answer."""

    query: Query
    answer: LocalAnswer | None


class Memory:
    """Queries are the same when all their bytes but the id are, and nothing that the answer depends on has changed."""

    def __init__(self) -> None:
        self._made_for: object = None
        self._decisions: dict[tuple[bytes, bool], Decision] = {}

    def recall(self, wire: bytes, made_for: object, *, udp: bool) -> Decision | None:
        """The decision about such a query, with the id of this one. ``made_for`` is what it depends on."""
        if made_for != self._made_for:
            return None
        found = self._decisions.get((wire[_ID_BYTES:], udp))
        if found is None:
            return None
        if found.answer is None or found.answer.outside:
            header = read_header(wire)
            assert header is not None
            return Decision(replace(found.query, wire=wire, header=header), found.answer)
        return replace(
            found, answer=replace(found.answer, wire=wire[:_ID_BYTES] + found.answer.wire[_ID_BYTES:])
        )

    def keep(self, decision: Decision, made_for: object, *, udp: bool) -> None:
        """Remember it, unless the next answer should have another order."""
        if made_for != self._made_for:
            self._made_for = made_for
            self._decisions.clear()
        answer, wire = decision.answer, decision.query.wire
        if len(wire) > MAX_REMEMBERED_BYTES or (answer is not None and answer.endpoints > 1):
            return
        if len(self._decisions) >= MAX_DECISIONS:
            self._decisions.clear()
        self._decisions[wire[_ID_BYTES:], udp] = decision
