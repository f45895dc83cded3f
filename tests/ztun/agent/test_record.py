"""What was done is told in a note of the table itself; what is not ours is not taken for ours."""

from __future__ import annotations

import pytest

from ztun.agent.record import SYSCTLS, UNKNOWN, CaptureRecord, digest
from ztun.agent.rules import CaptureOptions

pytestmark = pytest.mark.unit

MAX_COMMENT_BYTES = 128  # NFTNL_UDATA_COMMENT_MAXLEN


@pytest.mark.parametrize(
    "record",
    [
        CaptureRecord(),
        CaptureRecord(owner="self", rules=(4,), routes=(6,)),
        CaptureRecord(rules=(4, 6), routes=(4, 6), sysctls=dict.fromkeys(SYSCTLS, "2147483647"[:9])),
    ],
)
def test_a_note_says_what_was_done(record: CaptureRecord) -> None:
    note = record.note()
    assert len(note) < MAX_COMMENT_BYTES
    assert '"' not in note
    found = CaptureRecord.from_note(note)
    assert found is not None
    assert found.loaded == UNKNOWN
    assert (found.owner, found.rules, found.routes, found.sysctls) == (
        record.owner,
        record.rules,
        record.routes,
        record.sysctls,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "owner=somebody rules=46 routes=46",
        "owner=agent rules=64 routes=46",
        "owner=agent rules=46 routes=46 ",
        "owner=agent rules=46 routes=46 kernel/core_pattern=1",
        "owner=agent rules=46 routes=46 net/ipv4/tcp_migrate_req=|x",
        "owner=agent rules=46 routes=46\n",
    ],
)
def test_other_comments_are_not_notes(text: str) -> None:
    assert CaptureRecord.from_note(text) is None


def test_rules_are_told_apart_by_their_options() -> None:
    assert digest(CaptureOptions()) == digest(CaptureOptions(dns=True))
    assert digest(CaptureOptions()) != digest(CaptureOptions(dns=False)) != UNKNOWN
