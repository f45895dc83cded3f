"""What was measured while something grew: panels of lines of points, as JSON and as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.report import markdown_row


@dataclass(slots=True)
class Line:
    """One curve: the values of all rounds by what was there of the thing that grows."""

    name: str
    values: dict[int, list[float]] = field(default_factory=dict)

    def add(self, at: int, value: float) -> None:
        """Take the value of one more round."""
        self.values.setdefault(at, []).append(value)

    @property
    def points(self) -> list[tuple[int, float, float, float]]:
        """(x, median, lowest, highest), by x."""
        return [
            (at, statistics.median(values), min(values), max(values))
            for at, values in sorted(self.values.items())
        ]


@dataclass(slots=True)
class Panel:
    """One picture. ``goal`` is the value that no point should exceed; ``growing`` is the label of the x axis."""

    name: str
    title: str
    growing: str
    unit: str
    lines: list[Line] = field(default_factory=list)
    goal: float | None = None

    def line(self, name: str) -> Line:
        """The line of this name, made when it is new."""
        for line in self.lines:
            if line.name == name:
                return line
        self.lines.append(Line(name))
        return self.lines[-1]


def as_json(panels: Iterable[Panel], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Every single value."""
    return {
        **facts,
        "panels": [
            {
                "name": panel.name,
                "title": panel.title,
                "growing": panel.growing,
                "unit": panel.unit,
                "goal": panel.goal,
                "lines": {
                    line.name: {str(at): values for at, values in sorted(line.values.items())}
                    for line in panel.lines
                },
            }
            for panel in panels
        ],
    }


def from_json(data: Mapping[str, Any]) -> list[Panel]:
    """The panels of an earlier run, to draw them again."""
    return [
        Panel(
            one["name"],
            one["title"],
            one["growing"],
            one["unit"],
            [
                Line(name, {int(at): list(values) for at, values in points.items()})
                for name, points in one["lines"].items()
            ],
            one["goal"],
        )
        for one in data["panels"]
    ]


def as_markdown(panels: Iterable[Panel], title: str) -> str:
    """A table per panel: medians, a row for each x."""
    parts = [title, ""]
    for panel in panels:
        head = [panel.growing, *(line.name for line in panel.lines)]
        goal = "" if panel.goal is None else f"; goal: at most {panel.goal:g}"
        parts += [f"## {panel.title}", "", f"In {panel.unit}{goal}.", ""]
        parts += [markdown_row(head), markdown_row(["---:"] * len(head))]
        medians = [{at: median for at, median, _, _ in line.points} for line in panel.lines]
        for at in sorted({at for found in medians for at in found}):
            cells = [number(found[at]) if at in found else "-" for found in medians]
            parts.append(markdown_row([f"{at:,}", *cells]))
        parts.append("")
    return "\n".join(parts)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def merged(old: Sequence[Panel], new: Sequence[Panel]) -> list[Panel]:
    """The old panels with those that were measured anew in their place, further ones after them."""
    fresh = {panel.name: panel for panel in new}
    kept = [fresh.pop(panel.name, panel) for panel in old]
    return [*kept, *fresh.values()]
