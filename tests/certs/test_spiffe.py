from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import MAX_TRUST_DOMAIN_BYTES, MAX_URI_BYTES, SpiffeError, SpiffeId

pytestmark = pytest.mark.unit

GOOD = "spiffe://cluster.local/ns/default/sa/client"
DOMAIN = st.text(string.ascii_lowercase + string.digits + ".-_", min_size=1, max_size=60)
SEGMENT = st.text(string.ascii_letters + string.digits + ".-_", min_size=1, max_size=60).filter(
    lambda text: text not in (".", "..")
)


@given(DOMAIN, SEGMENT, SEGMENT)
def test_text_and_parts_agree(domain: str, namespace: str, account: str) -> None:
    identity = SpiffeId(domain, namespace, account)
    assert SpiffeId.parse(str(identity)) == identity
    assert str(identity) == f"spiffe://{identity.path}"


@given(st.text(max_size=80))
def test_arbitrary_text_is_an_identity_or_an_error(text: str) -> None:
    try:
        assert str(SpiffeId.parse(text)) == text
    except SpiffeError as error:
        assert str(error)


@given(st.integers(0, len(GOOD)), st.characters())
def test_no_insertion_is_read_as_the_same_identity(position: int, character: str) -> None:
    changed = GOOD[:position] + character + GOOD[position:]
    try:
        parsed = SpiffeId.parse(changed)
    except SpiffeError:
        return
    assert str(parsed) == changed
    assert parsed != SpiffeId.parse(GOOD)


@pytest.mark.parametrize("control", [*map(chr, range(32)), "\x7f", "\u2028", "\u00a0", "\u00e9"])
def test_control_and_foreign_characters_are_refused_anywhere(control: str) -> None:
    for position in range(len(GOOD) + 1):
        with pytest.raises(SpiffeError):
            SpiffeId.parse(GOOD[:position] + control + GOOD[position:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///ns/default/sa/client",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/default",
        "spiffe://cluster.local/ns/default/sa/",
        "spiffe://cluster.local/ns//sa/client",
        "spiffe://cluster.local/ns/default/sa/client/",
        "spiffe://cluster.local/ns/default/sa/client/x",
        "spiffe://cluster.local//ns/default/sa/client",
        "spiffe://cluster.local/sa/client/ns/default",
        "spiffe://cluster.local/NS/default/sa/client",
        "spiffe://Cluster.local/ns/default/sa/client",
        "SPIFFE://cluster.local/ns/default/sa/client",
        "https://cluster.local/ns/default/sa/client",
        "spiffe:/cluster.local/ns/default/sa/client",
        "spiffe://cluster.local:8080/ns/default/sa/client",
        "spiffe://user@cluster.local/ns/default/sa/client",
        "spiffe://cluster.local/ns/default/sa/client?x",
        "spiffe://cluster.local/ns/default/sa/client#x",
        "spiffe://cluster.local/ns/default/sa/%63lient",
        "spiffe://cluster.local/ns/../sa/client",
        "spiffe://cluster.local/ns/./sa/client",
        " spiffe://cluster.local/ns/default/sa/client",
        "spiffe://cluster.local/ns/default/sa/client\n",
        "spiffe://cluster.local/ns/default/sa/client\x00.evil.org",
        "spiffe://[::1]/ns/default/sa/client",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SpiffeError):
        SpiffeId.parse(text)


def test_lengths_are_bounded() -> None:
    SpiffeId("a" * MAX_TRUST_DOMAIN_BYTES, "ns", "sa")
    with pytest.raises(SpiffeError):
        SpiffeId("a" * (MAX_TRUST_DOMAIN_BYTES + 1), "ns", "sa")
    stem = "spiffe://td/ns/x/sa/"
    SpiffeId.parse(stem + "a" * (MAX_URI_BYTES - len(stem)))
    with pytest.raises(SpiffeError):
        SpiffeId.parse(stem + "a" * (MAX_URI_BYTES - len(stem) + 1))
    with pytest.raises(SpiffeError):
        SpiffeId("td", "x", "a" * MAX_URI_BYTES)


def test_parts_are_checked_however_they_come() -> None:
    for parts in (
        ("", "n", "s"),
        ("td", "n/sa", "s"),
        ("td", "n", ".."),
        ("TD", "n", "s"),
        ("td", "n", "s\x00"),
    ):
        with pytest.raises(SpiffeError):
            SpiffeId(*parts)
