"""The arithmetic of the benchmark's table; no load is run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.bench.report import Results, as_json, print_table
from tests.bench.rows import BY_NAME, ROWS

pytestmark = pytest.mark.unit


def results() -> Results:
    made = Results()
    for ztun, envoy in ((90.0, 100.0), (100.0, 200.0), (120.0, 100.0)):
        made.add("ztun", {"rtt_p50": ztun, "http_64": ztun})
        made.add("envoy", {"rtt_p50": envoy, "http_64": envoy})
    made.add("direct", {"rtt_p50": 50.0})
    return made


def test_ratios_are_taken_round_by_round() -> None:
    assert results().ratios(BY_NAME["rtt_p50"]) == [0.9, 0.5, 1.2]


def test_the_median_is_of_the_ratios_and_not_the_ratio_of_medians() -> None:
    row = as_json(results(), {})["rows"][0]
    assert row["ratio"] == 0.9
    assert row["medians"] == {"ztun": 100.0, "envoy": 100.0, "direct": 50.0}


def test_a_row_without_a_second_proxy_has_no_ratio() -> None:
    alone = Results()
    alone.add("envoy", {"rtt_p50": 100.0})
    assert as_json(alone, {})["rows"][0]["ratio"] is None


@pytest.mark.parametrize(
    ("name", "good", "bad"), [("http_64", 0.71, 0.69), ("rtt_p50", 1.42, 1.44), ("rss_idle_source", 1.0, 1.5)]
)
def test_the_floor_is_the_same_distance_in_either_direction(name: str, good: float, bad: float) -> None:
    row = BY_NAME[name]
    assert row.reaches(good, row.floor)
    assert not row.reaches(bad, row.floor)


def test_the_table_shows_every_measured_row_with_its_bounds() -> None:
    output = io.StringIO()
    print_table(results(), Console(file=output, width=160), "title")
    lines = output.getvalue().splitlines()
    (line,) = [line for line in lines if BY_NAME["rtt_p50"].label in line]
    assert "0.90" in line
    assert "0.50 .. 1.20" in line
    assert "<= 1.43" in line
    assert "<= 0.95" in line
    assert not any(BY_NAME["bulk_up"].label in line for line in lines)


def test_row_names_are_unique() -> None:
    assert len(BY_NAME) == len(ROWS)
