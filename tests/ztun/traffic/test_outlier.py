"""Ejection of failing endpoints, with time as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.traffic.outlier import MAX_EJECTION_SECONDS, OutlierDetector
from ztun.traffic.policy import OutlierPolicy

pytestmark = pytest.mark.unit

ONE, TWO = ("10.0.0.1", 9000), ("10.0.0.2", 9000)


def detector(**fields: int | float) -> OutlierDetector:
    made = OutlierDetector(OutlierPolicy(**fields))  # type: ignore[arg-type]
    made.retain([ONE, TWO])
    return made


def test_consecutive_failures_eject_for_the_base_time() -> None:
    outliers = detector(consecutive_errors=3)
    assert not outliers.failed(ONE, 0)
    assert not outliers.failed(ONE, 1)
    assert outliers.failed(ONE, 2)
    assert outliers.is_ejected(ONE, 31.9)
    assert not outliers.is_ejected(ONE, 32)
    assert not outliers.is_ejected(TWO, 5)


def test_a_success_starts_the_count_again() -> None:
    outliers = detector(consecutive_errors=2)
    outliers.failed(ONE, 0)
    outliers.succeeded(ONE)
    assert not outliers.failed(ONE, 1)


def test_ejections_get_longer_and_are_forgiven() -> None:
    outliers = detector(consecutive_errors=1, interval=10, base_ejection_time=30)
    assert outliers.failed(ONE, 0)
    assert outliers.failed(ONE, 30)
    assert outliers.is_ejected(ONE, 89)
    assert not outliers.is_ejected(ONE, 90)
    assert outliers.failed(ONE, 200)  # ten quiet intervals: back to the first length
    assert not outliers.is_ejected(ONE, 231)


def test_an_ejection_has_an_upper_bound() -> None:
    outliers = detector(consecutive_errors=1, base_ejection_time=200)
    now = 0.0
    for _ in range(3):
        assert outliers.failed(ONE, now)
        now += MAX_EJECTION_SECONDS
        assert not outliers.is_ejected(ONE, now)


def test_at_most_the_percentage_is_ejected_but_always_one() -> None:
    outliers = detector(consecutive_errors=1, max_ejection_percent=10)
    assert outliers.failed(ONE, 0)
    assert not outliers.failed(TWO, 0)
    assert outliers.failed(TWO, 30)


def test_zero_switches_it_off() -> None:
    outliers = detector(consecutive_errors=0)
    assert not any(outliers.failed(ONE, now) for now in range(20))


def test_endpoints_that_are_gone_are_forgotten() -> None:
    outliers = detector(consecutive_errors=1)
    outliers.failed(ONE, 0)
    outliers.retain([TWO])
    outliers.retain([ONE, TWO])
    assert not outliers.is_ejected(ONE, 1)


@given(
    st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.booleans(), st.floats(0, 100)), max_size=60),
    st.integers(0, 100),
)
def test_the_share_of_ejected_endpoints_keeps_its_bound(
    events: list[tuple[tuple[str, int], bool, float]], percent: int
) -> None:
    outliers = detector(consecutive_errors=1, max_ejection_percent=percent)
    now = 0.0
    for key, good, step in events:
        now += step
        if good:
            outliers.succeeded(key)
        else:
            outliers.failed(key, now)
        ejected = sum(outliers.is_ejected(one, now) for one in (ONE, TWO))
        assert ejected <= max(1, 2 * percent // 100)
