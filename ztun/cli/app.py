"""The ``ztun`` command line: which commands there are."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from ztun.cli import agent, ask, demo, echo, outcome, proxy, version

app = typer.Typer(
    name="ztun",
    help="A service mesh data plane: the node proxy, the tools that question it, and a mesh on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
demo.register(app)
proxy.register(app)
agent.register(app)
echo.register(app)
ask.register(app)
version.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``ztun`` executable; returns the exit code."""
    return outcome.run(app, "ztun", arguments)
