"""The ``waypoint`` command line: which commands there are."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from waypoint.cli import analyze, explain, gateway, run
from ztun.cli import outcome

app = typer.Typer(
    name="waypoint",
    help="Layer-4 routing: waypoints, gateways, and what a configuration does and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
run.register(app)
gateway.register(app)
analyze.register(app)
explain.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``waypoint`` executable; returns the exit code."""
    return outcome.run(app, "waypoint", arguments)
