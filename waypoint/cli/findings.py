"""Findings as a table, JSON or YAML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ztun.mesh.document import Problem

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "json", "yaml")
STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def as_values(problem: Problem) -> Mapping[str, object]:
    """A finding as plain data; a finding without position has neither file nor line."""
    place = problem.location
    position = {"file": place.file, "line": place.line, "column": place.column} if place else {}
    return {
        "severity": problem.severity,
        "code": problem.code,
        **position,
        "object": problem.object,
        "path": problem.path,
        "message": problem.message,
        "hint": problem.hint,
    }


def print_findings(problems: Sequence[Problem], output: str, console: Console) -> None:
    """Print in the given format. The machine-readable ones are complete and stable."""
    if output == "json":
        print(json.dumps([as_values(problem) for problem in problems], indent=2))
    elif output == "yaml":
        import yaml

        values = [dict(as_values(problem)) for problem in problems]
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
    else:
        _print_table(problems, console)


def _print_table(problems: Sequence[Problem], console: Console) -> None:
    from rich.text import Text

    for problem in problems:
        line = Text()
        line.append(problem.severity.upper().ljust(8), STYLES[problem.severity])
        line.append(f"{problem.code} ", "bold")
        line.append(f"{problem.location} " if problem.location else "", "cyan")
        line.append(f"{problem.object} {problem.path}".strip())
        console.print(line, soft_wrap=True)
        console.print(Text(f"        {problem.message}"), soft_wrap=True)
        if problem.hint:
            console.print(Text(f"        hint: {problem.hint}", "dim"), soft_wrap=True)
    counts: Counter[str] = Counter(problem.severity for problem in problems)
    if not problems:
        console.print("no findings")
        return
    parts = [
        f"{counts[level]} {level}{'s' if counts[level] > 1 and level != 'info' else ''}" for level in STYLES
    ]
    console.print(", ".join(part for part, level in zip(parts, STYLES, strict=True) if counts[level]))
