"""``ztun echo``: the TCP echo server of the examples."""

from __future__ import annotations

from typing import Annotated

import typer


def parse_ports(text: str) -> tuple[int, ...]:
    """Ports from ``9000`` or ``9000,9001``; raises ``typer.BadParameter`` for anything else."""
    ports = []
    for item in text.split(","):
        if not item.strip().isascii() or not item.strip().isdecimal() or int(item) > 65535:
            raise typer.BadParameter(f"{item!r} is not a port (0 to 65535, several separated by commas)")
        ports.append(int(item))
    return tuple(ports)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("echo", short_help='Answer every line with "<say> <line>".')
    def echo_command(
        port: Annotated[str, typer.Option(help="Port, or several separated by commas.")] = "9000",
        say: Annotated[str, typer.Option(help="Put in front of every line that is sent back.")] = "hello",
        host: Annotated[str, typer.Option(help="Address to listen on; empty is every address.")] = "",
    ) -> None:
        """Answer every line with "<say> <line>", as the image istio/tcp-echo-server does."""
        ports = parse_ports(port)
        from ztun.lab.echo import serve_until_stopped

        serve_until_stopped(host or None, ports, say)
