from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.access import Access, AccessFile, Grant, read_access
from certs.disk import write_file
from certs.errors import CertError
from certs.spiffe import SpiffeError, SpiffeId
from tests.certs.conftest import workload

pytestmark = pytest.mark.unit

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "covered", "not_covered"),
    [
        ("spiffe://td/*", ["td/ns/a/sa/b"], ["other/ns/a/sa/b", "td.evil/ns/a/sa/b"]),
        ("spiffe://td/ns/a/*", ["td/ns/a/sa/b", "td/ns/a/sa/c"], ["td/ns/ab/sa/b", "other/ns/a/sa/b"]),
        ("spiffe://td/ns/a/sa/b", ["td/ns/a/sa/b"], ["td/ns/a/sa/bb", "td/ns/b/sa/b"]),
    ],
)
def test_grants_cover_exactly_what_they_say(text: str, covered: list[str], not_covered: list[str]) -> None:
    grant = Grant.parse(text)
    for path in covered:
        assert grant.covers(SpiffeId.parse(f"spiffe://{path}"))
    for path in not_covered:
        assert not grant.covers(SpiffeId.parse(f"spiffe://{path}"))


@pytest.mark.parametrize(
    "text",
    ["*", "", "/*", "spiffe://*", "spiffe://td/ns/*", "spiffe://td/ns/a/sa/*", "spiffe://td/ns/a*/sa/b"],
)
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(SpiffeError):
        Grant.parse(text)


@given(st.text(max_size=60))
def test_arbitrary_grants_are_refused_or_understood(text: str) -> None:
    try:
        grant = Grant.parse(text)
    except SpiffeError:
        return
    assert grant.trust_domain in text


def test_nothing_is_granted_by_default() -> None:
    access = Access()
    assert access.caller_by_token("") is None
    assert access.caller_by_token(TOKEN) is None
    own = access.caller_by_identity(workload("a"))
    assert own.may_have(workload("a"))
    assert not own.may_have(workload("b"))


def test_file_is_read_and_keeps_no_token(tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    text = f"tokens:\n- token: {TOKEN}\n  may: ['spiffe://cluster.local/*']\n"
    write_file(path, text.encode(), private=True)
    access = read_access(path)
    caller = access.caller_by_token(TOKEN)
    assert caller is not None
    assert caller.may_have(workload("a"))
    assert access.caller_by_token(TOKEN + "x") is None
    assert access.caller_by_token("\udcff") is None
    assert TOKEN not in repr(access) + repr(caller)
    write_file(path, b"", private=True)
    assert read_access(path).caller_by_token(TOKEN) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens: [", "access.yaml:1:10: not YAML"),
        ("- 1", "the document"),
        ("tokens: [{token: short, may: ['spiffe://td/*']}]", "tokens.0.token"),
        (f"tokens: [{{token: {TOKEN}, may: []}}]", "tokens.0.may"),
        (f"tokens: [{{token: {TOKEN}, may: ['*']}}]", "expected spiffe://"),
        (f"tokens: [{{token: {TOKEN}x, might: 1, may: ['spiffe://td/*']}}]", "tokens.0.might"),
        ("certificates: [{identity: x, may: ['spiffe://td/*']}]", "expected spiffe://"),
    ],
)
def test_mistakes_are_named_without_secrets(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "access.yaml"
    write_file(path, text.encode(), private=True)
    with pytest.raises(CertError) as raised:
        read_access(path)
    assert said in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    write_file(path, b"{}", private=False)
    with pytest.raises(CertError) as raised:
        read_access(path)
    assert raised.value.code == "access_readable"
    assert "chmod 600" in raised.value.hint


def test_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.access.SETTLED_NANOSECONDS", -1)
    path = tmp_path / "access.yaml"
    write_file(path, f"tokens: [{{token: {TOKEN}, may: ['spiffe://td/*']}}]".encode(), private=True)
    file = AccessFile(path)
    first = file.read()
    assert file.read() is first
    write_file(path, b"{}", private=True)
    assert file.read().caller_by_token(TOKEN) is None
    path.chmod(0o644)
    with pytest.raises(CertError) as raised:
        file.read()
    assert raised.value.code == "access_readable"
    path.unlink()
    with pytest.raises(CertError) as raised:
        file.read()
    assert raised.value.code == "file_not_read"


def test_file_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next change may come within the same tick of the file system's clock."""
    monkeypatch.setattr("certs.access.SETTLED_NANOSECONDS", 10**18)
    path = tmp_path / "access.yaml"
    write_file(path, b"{}", private=True)
    file = AccessFile(path)
    assert file.read() is not file.read()
