"""The figures behind the plot: medians by round, tables, and panels that are measured anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.growth.plot import draw, limits
from tests.bench.growth.series import Panel, as_json, as_markdown, from_json, merged, number

pytestmark = pytest.mark.unit

PNG = b"\x89PNG\r\n\x1a\n"


def panel(name: str = "reload", goal: float | None = 2.0) -> Panel:
    made = Panel(name, "Reload", "workloads", "s", goal=goal)
    for at, values in ((1000, (0.5, 0.3, 0.4)), (10, (0.1, 0.2, 0.9))):
        for value in values:
            made.line("all").add(at, value)
    made.line("one").add(10, 0.05)
    return made


def test_points_are_medians_with_their_range_by_size() -> None:
    assert panel().line("all").points == [(10, 0.2, 0.1, 0.9), (1000, 0.4, 0.3, 0.5)]


def test_a_size_that_a_line_lacks_is_a_dash_and_moves_nothing() -> None:
    lines = as_markdown([panel()], "# Growth").splitlines()
    assert lines[0] == "# Growth"
    assert "## Reload" in lines
    assert "In s; goal: at most 2." in lines
    assert "| workloads | all | one |" in lines
    assert "| 10 | 0.20 | 0.05 |" in lines
    assert "| 1,000 | 0.40 | - |" in lines


def test_every_value_survives_the_file() -> None:
    text = json.dumps(as_json([panel(), panel("other", goal=None)], {"machine": {}}))
    assert from_json(json.loads(text)) == [panel(), panel("other", goal=None)]


def test_what_is_measured_anew_takes_the_place_of_the_old() -> None:
    anew = Panel("b", "again", "x", "s")
    found = merged([panel("a"), panel("b"), panel("c")], [anew, panel("d")])
    assert [one.name for one in found] == ["a", "b", "c", "d"]
    assert found[1] is anew


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (100.4, "100"), (12.34, "12.3"), (0.05, "0.05")]
)
def test_three_digits_are_enough(value: float, text: str) -> None:
    assert number(value) == text


def test_an_axis_shows_all_values_and_the_goal() -> None:
    low, high = limits(panel())
    assert low < 0.05
    assert high > 2.0


def test_noise_does_not_fill_a_whole_axis() -> None:
    flat = Panel("rtt", "Round trip", "connections", "µs")
    for at, value in ((1, 100.0), (10, 104.0)):
        flat.line("ztun").add(at, value)
    low, high = limits(flat)
    assert high / low == pytest.approx(10)
    assert low < 100 < 104 < high


def test_the_picture_has_a_panel_for_each(tmp_path: Path) -> None:
    path = tmp_path / "growth.png"
    draw([panel("a"), panel("b"), panel("c", goal=None)], path, "title")
    assert path.read_bytes().startswith(PNG)
