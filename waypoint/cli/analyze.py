"""``waypoint analyze``: findings about configuration files, and the corrected documents."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ztun.cli.outcome import EXIT_FAILURE


class Output(StrEnum):
    """How findings are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("analyze")(analyze)


def analyze(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and directories with YAML.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="What ambient mode does not evaluate is an error.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Print the corrected documents instead of the findings.")
    ] = False,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="How to print the findings.")
    ] = Output.TABLE,
    namespace: Annotated[str, typer.Option(help="The namespace of objects that name none.")] = "default",
) -> None:
    """Say what is wrong with routing files: where, why, and what to do about it.

    Exits with 1 when a finding is an error. With --fix the corrected documents go to standard output as YAML and
    what remains to be done by hand goes to standard error.
    """
    from rich.console import Console

    from waypoint.analysis.analyzer import analyze as run
    from waypoint.analysis.configuration import read_configuration
    from waypoint.cli.findings import print_findings

    configuration = read_configuration(paths, namespace=namespace)
    if fix:
        from waypoint.analysis.fixes import corrected, yaml_of

        result = corrected(configuration)
        print(yaml_of(result), end="")
        remaining = run(result.configuration, strict=strict)
        print_findings(remaining, "table", Console(stderr=True, highlight=False))
        found = remaining
    else:
        found = run(configuration, strict=strict)
        print_findings(found, output.value, Console(highlight=False))
    if any(problem.severity == "error" for problem in found):
        raise typer.Exit(EXIT_FAILURE)
