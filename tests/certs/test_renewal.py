from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.renewal import MAX_RETRY_SECONDS, is_due, renew_at, retry_at

pytestmark = pytest.mark.unit

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Middle(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_renewal_at_half_life() -> None:
    assert renew_at(NOW, NOW + timedelta(hours=24)) == NOW + timedelta(hours=12)


def test_delay_doubles_up_to_its_cap() -> None:
    delays = [(retry_at(NOW, n, None, Middle()) - NOW).total_seconds() for n in range(1, 12)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150]


def test_expiry_comes_before_a_long_delay() -> None:
    expiry = NOW + timedelta(seconds=20)
    assert retry_at(NOW, 9, expiry, Middle()) == expiry
    assert retry_at(NOW, 1, expiry, Middle()) == NOW + timedelta(seconds=1)


def test_expiry_in_the_past_does_not_make_it_spin() -> None:
    assert retry_at(NOW, 3, NOW - timedelta(days=1), Middle()) == NOW + timedelta(seconds=4)


def test_what_was_set_while_the_clock_was_ahead_is_due() -> None:
    longest = NOW + timedelta(seconds=MAX_RETRY_SECONDS)
    moment = timedelta(microseconds=1)
    assert is_due(None, NOW)
    assert is_due(NOW, NOW)
    assert not is_due(NOW + moment, NOW)
    assert not is_due(longest, NOW)
    assert is_due(longest + moment, NOW)
    half = NOW + timedelta(hours=12)
    assert not is_due(half, NOW, half)
    assert is_due(half + moment, NOW, half)
    assert not is_due(longest, NOW, NOW - timedelta(hours=1))


@given(failures=st.integers(1, 10**9), seed=st.integers(), left=st.none() | st.integers(-(10**6), 10**6))
def test_retry_is_soon_but_never_now(failures: int, seed: int, left: int | None) -> None:
    expiry = NOW + timedelta(seconds=left) if left is not None else None
    at = retry_at(NOW, failures, expiry, random.Random(seed))
    assert NOW < at <= NOW + timedelta(seconds=MAX_RETRY_SECONDS)
    if expiry is not None and expiry > NOW:
        assert at <= expiry


@given(failures=st.integers(1, 8), seed=st.integers())
def test_jitter_is_a_fifth(failures: int, seed: int) -> None:
    plain = 0.5 * 2**failures
    delay = (retry_at(NOW, failures, None, random.Random(seed)) - NOW).total_seconds()
    assert 0.8 * plain - 1e-5 <= delay <= min(1.2 * plain, MAX_RETRY_SECONDS) + 1e-5
