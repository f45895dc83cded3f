"""The panels as one picture, two in a row, readable at the width of a README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.growth.series import Panel

COLUMNS = 2
PANEL_INCHES = (4.7, 3.1)
DOTS_PER_INCH = 110
COLOURS = ("#1f6feb", "#d1622b", "#2e8b57", "#8250df", "#777777")
MARKERS = ("o", "s", "^", "D", "x")
ROOM = 1.6  # above the highest and below the lowest value of a panel, as a factor


def draw(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG: medians with the range of all rounds behind them, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second; other parts do without
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9, color="#444444")
    for index, panel in enumerate(panels):
        _panel(figure.add_subplot(rows, COLUMNS, index + 1), panel)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def limits(panel: Panel) -> tuple[float, float]:
    """The range of the y axis: everything that was seen, the goal, and at least a factor of ten.

    Without the factor a logarithmic axis makes noise of a few percent look like growth.
    """
    seen = [value for line in panel.lines for values in line.values.values() for value in values if value > 0]
    if panel.goal is not None:
        seen.append(panel.goal)
    low, high = min(seen) / ROOM, max(seen) * ROOM
    if high / low < 10:
        stretch = math.sqrt(10 * low / high)
        low, high = low / stretch, high * stretch
    return low, high


def _panel(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for index, line in enumerate(panel.lines):
        colour = COLOURS[index % len(COLOURS)]
        at, median, low, high = zip(*line.points, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            at,
            median,
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.5,
            label=line.name,
        )
    if panel.goal is not None:
        axes.axhline(panel.goal, color="#cc0000", linewidth=1, linestyle="--")
        axes.annotate(
            f"goal: at most {panel.goal:g} {panel.unit}",
            (0.02, panel.goal),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color="#cc0000",
        )
    axes.set(xscale="log", yscale="log", ylim=limits(panel))
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.growing, fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, framealpha=0.85)
