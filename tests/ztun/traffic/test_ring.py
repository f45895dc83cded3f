"""Consistent hashing: every endpoint once per order, shares by weight, little movement."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.traffic.ring import HashRing, MaglevTable, stable_hash

pytestmark = pytest.mark.unit

KEYS = [(f"10.0.0.{number}", 9000) for number in range(1, 8)]
hashes = st.integers(0, 2**64 - 1)


@given(hashes, st.integers(1, 7), st.sampled_from([HashRing, MaglevTable]))
def test_an_order_names_every_endpoint_once(
    value: int, count: int, table: type[HashRing | MaglevTable]
) -> None:
    keys = KEYS[:count]
    assert sorted(table(keys, [1.0] * count, 101).order(value)) == sorted(keys)


@pytest.mark.parametrize("table", [HashRing, MaglevTable])
def test_weights_give_shares(table: type[HashRing | MaglevTable]) -> None:
    made = table(KEYS[:2], [3.0, 1.0], 4093)
    found = Counter(next(made.order(stable_hash(str(number)))) for number in range(4000))
    assert 0.68 < found[KEYS[0]] / 4000 < 0.82


def test_a_table_smaller_than_its_endpoints_still_reaches_all() -> None:
    made = MaglevTable(KEYS, [1.0] * len(KEYS), 3)
    assert sorted(made.order(1)) == sorted(KEYS)


def test_a_table_size_that_is_not_prime_is_filled_all_the_same() -> None:
    assert sorted(MaglevTable(KEYS[:3], [1.0] * 3, 64).order(5)) == sorted(KEYS[:3])


def test_the_hash_is_the_same_in_every_process() -> None:
    assert stable_hash("10.0.0.1") == 0x538EF646E14D03E6
