"""The state on disk: taken up again, by one process at a time, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztun.agent.enrolments import (
    FILE,
    Enrolment,
    PodIdentity,
    StateDirectory,
    check_name,
    parse_pod,
)
from ztun.agent.record import CaptureRecord, digest
from ztun.agent.rules import CaptureOptions
from ztun.errors import ConfigError

pytestmark = pytest.mark.unit

ENROLMENT = Enrolment(
    PodIdentity("uid", "web", "shop", "seller"),
    Path("/run/netns/web"),
    "command",
    CaptureOptions(dns=False, virtual_interfaces=("tap0",)),
    identity="boot/cookie-7",
    record=CaptureRecord(rules=(4, 6), routes=(6,), sysctls={"net/ipv4/tcp_migrate_req": "0"}, loaded="x"),
)


def raises(code: str) -> pytest.RaisesExc[ConfigError]:
    return pytest.RaisesExc(ConfigError, check=lambda error: error.code == code and bool(error.hint))


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    StateDirectory(tmp_path).save([ENROLMENT], ["held"])
    state = StateDirectory(tmp_path).load()
    assert state.enrolments == (ENROLMENT,)
    assert state.held == {"held"}


def test_there_is_nothing_at_first(tmp_path: Path) -> None:
    assert StateDirectory(tmp_path).load().enrolments == ()


def test_captured_is_who_has_the_rules_that_are_wanted() -> None:
    assert not ENROLMENT.captured
    loaded = CaptureRecord(loaded=digest(ENROLMENT.options))
    assert Enrolment(ENROLMENT.pod, ENROLMENT.netns, "command", ENROLMENT.options, record=loaded).captured
    assert not Enrolment(ENROLMENT.pod, ENROLMENT.netns, "command", record=loaded).captured


def test_after_a_boot_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StateDirectory(tmp_path).save([ENROLMENT])
    monkeypatch.setattr("ztun.agent.enrolments.boot_id", lambda: "another")
    assert StateDirectory(tmp_path).load().enrolments == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"enrolments": [{}]}', "\x00"])
def test_a_state_that_cannot_be_read_is_not_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with raises("state_unreadable"):
        StateDirectory(tmp_path).load()


def test_a_state_of_absurd_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StateDirectory(tmp_path).save([ENROLMENT])
    monkeypatch.setattr("ztun.agent.enrolments.MAX_STATE_BYTES", 10)
    with raises("state_unreadable"):
        StateDirectory(tmp_path).load()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = StateDirectory(tmp_path / "new"), StateDirectory(tmp_path / "new")
    first.lock()
    with raises("state_in_use"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_place_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises("state_unwritable"):
        StateDirectory(tmp_path / "file").lock()
    directory = StateDirectory(tmp_path)
    directory.save([ENROLMENT])
    (tmp_path / f"{FILE}.new").mkdir()
    with raises("state_unwritable"):
        directory.save([])
    assert directory.load().enrolments == (ENROLMENT,)


@pytest.mark.parametrize("text", ["", "a", "/b", "a/", "a/b/c", "A/b", "a/b ", "a/..", "a/" + "b" * 254])
def test_a_pod_is_a_namespace_and_a_name(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_pod(text)
    assert parse_pod("shop/web-1.x") == ("shop", "web-1.x")


def test_names_are_checked() -> None:
    assert check_name("seller", "the service account") == "seller"
    with raises("bad_name"):
        check_name("-seller", "the service account")
