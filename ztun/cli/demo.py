"""``ztun demo``: a whole mesh on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells report it


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("demo")
    def demo_command(
        fabric: Annotated[
            Literal["auto", "loopback", "netns"],
            typer.Option(help="What nodes and pods are made of; auto takes what this machine allows."),
        ] = "auto",
        check: Annotated[
            bool, typer.Option("--check", help="Drive connections through the mesh, report, and end.")
        ] = False,
        keep: Annotated[
            bool, typer.Option("--keep", help="Leave the generated configuration and the logs.")
        ] = False,
    ) -> None:
        """Start two nodes with the pods of the examples, and their traffic over mutual TLS."""
        raise typer.Exit(_run(fabric, check=check, keep=keep))


def _run(fabric: Literal["auto", "loopback", "netns"], *, check: bool, keep: bool) -> int:
    import asyncio
    import signal

    import uvloop
    from rich.console import Console

    from ztun.lab.demo import TABLE_COLUMNS, demo

    console = Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)

    async def run_until_terminated() -> bool:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await demo(console, fabric=fabric, checked=check, keep=keep)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return 0 if runner.run(run_until_terminated()) else 1
        except asyncio.CancelledError:
            return EXIT_TERMINATED
