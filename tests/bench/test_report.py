"""The arithmetic of the benchmark's table; no load is run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.bench.report import Results, as_json, as_markdown, print_table
from tests.bench.rows import BY_NAME, ROWS

pytestmark = pytest.mark.unit


def results() -> Results:
    made = Results()
    for number, (ztun, envoy) in enumerate(((90.0, 100.0), (100.0, 200.0), (120.0, 100.0))):
        made.add("ztun", number, {"rtt_p50": ztun, "http_64": ztun})
        made.add("envoy", number, {"rtt_p50": envoy, "http_64": envoy})
    made.add("direct", 0, {"rtt_p50": 50.0})
    return made


def printed(made: Results) -> list[str]:
    output = io.StringIO()
    print_table(made, Console(file=output, width=160), "title")
    return output.getvalue().splitlines()


def test_ratios_are_taken_round_by_round() -> None:
    assert results().ratios(BY_NAME["rtt_p50"]) == [0.9, 0.5, 1.2]


def test_a_round_that_failed_on_one_side_shifts_no_other_pair() -> None:
    made = Results()
    made.add("ztun", 0, {"rtt_p50": 90.0})
    made.add("ztun", 1, {"rtt_p50": 100.0})
    made.failed("envoy", 0, ["rtt_p50"], EOFError("closed"))
    made.add("envoy", 1, {"rtt_p50": 200.0})
    assert made.ratios(BY_NAME["rtt_p50"]) == [0.5]


def test_the_median_is_of_the_ratios_and_not_the_ratio_of_medians() -> None:
    row = as_json(results(), {})["rows"][0]
    assert row["ratio"] == 0.9
    assert row["reached"] is True
    assert row["medians"] == {"ztun": 100.0, "envoy": 100.0, "direct": 50.0}
    assert row["values"]["envoy"] == {0: 100.0, 1: 200.0, 2: 100.0}


def test_a_row_without_a_second_proxy_has_no_ratio() -> None:
    alone = Results()
    alone.add("envoy", 0, {"rtt_p50": 100.0})
    row = as_json(alone, {})["rows"][0]
    assert row["ratio"] is None
    assert row["reached"] is None


def test_what_failed_is_in_the_table_and_in_the_document() -> None:
    made = results()
    made.failed("nginx", 1, ["bulk_up", "bulk_down"], EOFError("closed [early]\nand more"))
    (line,) = [line for line in printed(made) if line.startswith("FAILED")]
    assert line == "FAILED round 2, nginx, bulk_up, bulk_down: EOFError: closed [early]"
    document = as_json(made, {})
    assert [failure["round"] for failure in document["failures"]] == [1]
    (row,) = [row for row in document["rows"] if row["name"] == "bulk_up"]
    assert row["ratio"] is None
    assert row["values"] == {}


@pytest.mark.parametrize(
    ("name", "good", "bad"), [("http_64", 0.71, 0.69), ("rtt_p50", 1.42, 1.44), ("rss_idle_source", 1.0, 1.5)]
)
def test_the_floor_is_the_same_distance_in_either_direction(name: str, good: float, bad: float) -> None:
    row = BY_NAME[name]
    assert row.reaches(good, row.floor)
    assert not row.reaches(bad, row.floor)


def test_the_table_shows_every_measured_row_with_its_target() -> None:
    lines = printed(results())
    (line,) = [line for line in lines if BY_NAME["rtt_p50"].label in line]
    for part in ("0.90", "0.50 .. 1.20", "<= 0.95", " 3 ", "yes"):
        assert part in line
    (line,) = [line for line in lines if BY_NAME["http_64"].label in line]
    assert line.endswith(">= 1.20        no ")
    assert not any(BY_NAME["bulk_up"].label in line for line in lines)


def test_the_markdown_table_has_units_targets_and_verdicts() -> None:
    lines = as_markdown(results(), "title").splitlines()
    assert lines[0] == "title"
    assert lines[2] == "| row | ztun | Envoy | direct | ztun / Envoy | target | reached |"
    assert lines[3].count("|") == lines[2].count("|")
    assert lines[4] == "| round trip 64 B, p50 | 100.0 us | 100.0 us | 50.0 us | 0.90 | <= 0.95 | yes |"
    assert lines[5].endswith("| - | 0.90 | >= 1.20 | no |")


def test_row_names_are_unique() -> None:
    assert len(BY_NAME) == len(ROWS)
