"""Which measurements a round has, and what becomes of those that fail; no load is run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.bench.measure import FULL, MEASUREMENTS, MEMORY_ROWS
from tests.bench.paths import KINDS, OPENERS
from tests.bench.report import Results
from tests.bench.rounds import attempt, of_round, ordered
from tests.bench.rows import BY_NAME, Way

pytestmark = pytest.mark.unit


def test_a_steady_drift_favours_neither_side_of_a_pair() -> None:
    figures: dict[str, list[float]] = {"ztun": [], "envoy": []}
    clock = 0.0
    for number in range(8):
        for kind in ordered(("ztun", "envoy"), number):
            figures[kind].append(100 + clock)
            clock += 1
    assert sum(figures["ztun"]) == sum(figures["envoy"])


def test_ztun_and_envoy_follow_each_other_in_either_order() -> None:
    for turn in range(2):
        kinds = list(ordered(KINDS, turn))
        assert sorted(kinds) == sorted(KINDS)
        assert abs(kinds.index("ztun") - kinds.index("envoy")) == 1
    assert ordered((), 3) == ()


def test_every_round_has_both_sides_of_the_ratio() -> None:
    assert list(of_round(KINDS, 0)) == list(KINDS)
    assert list(of_round(KINDS, 1)) == ["ztun", "envoy"]


def test_a_full_run_has_seven_pairs_at_least_and_either_side_is_first_as_often() -> None:
    assert FULL.rounds >= 7
    assert FULL.memory_rounds >= 7
    assert FULL.rounds % 2 == 0


def test_every_row_is_measured_by_one_load() -> None:
    measured = [name for measurement in MEASUREMENTS for name in measurement.rows]
    assert sorted([*measured, *MEMORY_ROWS]) == sorted(BY_NAME)


def test_every_path_that_a_row_needs_can_be_opened() -> None:
    for measurement in MEASUREMENTS:
        assert measurement.kinds <= set(OPENERS[measurement.way])


def test_a_waypoint_is_compared_with_what_can_have_one() -> None:
    assert BY_NAME["waypoint_rtt_p50"].kinds == set(OPENERS[Way.WAYPOINT])


def test_figures_that_nobody_asked_for_are_left_out() -> None:
    results = Results()
    assert attempt(results, 0, "ztun", ["rtt_p50"], lambda: {"rtt_p50": 1.0, "rtt_p99": 2.0})
    assert set(results.values) == {"rtt_p50"}


def test_a_failure_is_kept_with_its_round_and_the_next_round_counts() -> None:
    def closed() -> Mapping[str, float]:
        raise EOFError("the proxy closed it")

    results = Results()
    assert not attempt(results, 0, "ztun", ["rtt_p50"], closed)
    assert attempt(results, 1, "ztun", ["rtt_p50"], lambda: {"rtt_p50": 1.0})
    (failure,) = results.failures
    assert (failure.kind, failure.round, failure.rows) == ("ztun", 0, ("rtt_p50",))
    assert failure.reason == "EOFError: the proxy closed it"
    assert results.values["rtt_p50"]["ztun"] == {1: 1.0}


def test_an_interrupt_ends_the_run() -> None:
    def interrupted() -> Mapping[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(Results(), 0, "ztun", ["rtt_p50"], interrupted)
