"""The commands that ask a running proxy: ``ztun workloads``, ``services``, ``policies`` and so on."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.cli.dump_models import Dump
    from ztun.cli.listing import Listing

DEFAULT_ADMIN = "127.0.0.1:15000"
MAX_LINE_CHARACTERS = 10_000  # room for any row of names, which end at 253 characters each


class Output(StrEnum):
    """How the answer is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Direction(StrEnum):
    """Which connections are listed."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Sort(StrEnum):
    """What comes first in a list of connections."""

    AGE = "age"
    BYTES = "bytes"
    IDLE = "idle"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to write the answer.")]
AdminOption = Annotated[
    str, typer.Option("--admin", metavar="HOST:PORT", help="The admin port of the proxy.")
]
FileOption = Annotated[
    str, typer.Option("-f", "--file", metavar="FILE", help="Read a saved dump instead; - is standard input.")
]
NamespaceOption = Annotated[
    str, typer.Option("-n", "--namespace", metavar="NAME", help="Only this namespace.")
]
NodeOption = Annotated[str, typer.Option("--node", metavar="NAME", help="Only workloads of this node.")]
AddressOption = Annotated[
    str, typer.Option("--address", metavar="IP", help="Only the workload with this address.")
]
DirectionOption = Annotated[Direction | None, typer.Option("--direction", help="Only this direction.")]
SortOption = Annotated[Sort | None, typer.Option("--sort", help="Largest first, instead of by workload.")]
WatchOption = Annotated[
    bool, typer.Option("-w", "--watch", help="Answer again whenever it changes, until interrupted.")
]
RawOption = Annotated[bool, typer.Option("--raw", help="Show addresses, not the names they belong to.")]
LevelOption = Annotated[
    str, typer.Option("--level", metavar="LEVEL", help="A level, or SCOPE=LEVEL; several with commas.")
]
ResetOption = Annotated[bool, typer.Option("--reset", help="First go back to the levels of the start.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command("workloads")
    def workloads(
        output: OutputOption = Output.TABLE,
        namespace: NamespaceOption = "",
        node: NodeOption = "",
        address: AddressOption = "",
        watch: WatchOption = False,
        admin: AdminOption = DEFAULT_ADMIN,
        file: FileOption = "",
    ) -> None:
        """List the workloads a proxy knows."""
        from ztun.cli.listing import list_workloads

        def listing(dump: Dump) -> Listing:
            return list_workloads(dump, namespace=namespace, node=node, address=address)

        _answer(listing, output, admin, file, watch)

    @app.command("services", short_help="List the services a proxy knows.")
    def services(
        output: OutputOption = Output.TABLE,
        namespace: NamespaceOption = "",
        watch: WatchOption = False,
        admin: AdminOption = DEFAULT_ADMIN,
        file: FileOption = "",
    ) -> None:
        """List the services a proxy knows, with how many of their endpoints are ready."""
        from ztun.cli.listing import list_services

        _answer(lambda dump: list_services(dump, namespace=namespace), output, admin, file, watch)

    @app.command("policies", short_help="List the policies a proxy enforces.")
    def policies(
        output: OutputOption = Output.TABLE,
        namespace: NamespaceOption = "",
        watch: WatchOption = False,
        admin: AdminOption = DEFAULT_ADMIN,
        file: FileOption = "",
    ) -> None:
        """List the authorization policies a proxy enforces."""
        from ztun.cli.listing import list_policies

        _answer(lambda dump: list_policies(dump, namespace=namespace), output, admin, file, watch)

    @app.command("certificates", short_help="List the certificates a proxy holds.")
    def certificates(
        output: OutputOption = Output.TABLE,
        watch: WatchOption = False,
        admin: AdminOption = DEFAULT_ADMIN,
        file: FileOption = "",
    ) -> None:
        """List the certificates a proxy holds, and until when they are valid."""
        from datetime import UTC, datetime

        from ztun.cli.listing import list_certificates

        _answer(lambda dump: list_certificates(dump, now=datetime.now(UTC)), output, admin, file, watch)

    @app.command("connections")
    def connections(
        output: OutputOption = Output.TABLE,
        namespace: NamespaceOption = "",
        direction: DirectionOption = None,
        sort: SortOption = None,
        raw: RawOption = False,
        watch: WatchOption = False,
        admin: AdminOption = DEFAULT_ADMIN,
        file: FileOption = "",
    ) -> None:
        """List the live connections of a proxy."""
        from ztun.cli.listing import list_connections

        def listing(dump: Dump) -> Listing:
            return list_connections(
                dump,
                namespace=namespace,
                direction=direction.value if direction else "",
                sort=sort.value if sort else "",
                raw=raw,
            )

        _answer(listing, output, admin, file, watch)

    @app.command("log")
    def log(
        level: LevelOption = "",
        reset: ResetOption = False,
        output: OutputOption = Output.TABLE,
        admin: AdminOption = DEFAULT_ADMIN,
    ) -> None:
        """Show or change the log levels of a running proxy."""
        from ztun.cli.admin_client import change_levels
        from ztun.cli.listing import Listing

        levels = change_levels(admin, level, reset=reset).removeprefix("current log level is ")
        pairs = [part.rpartition("=")[::2] for part in levels.split(",")]
        rows = tuple((scope or "*", name) for scope, name in pairs)
        items = tuple({"scope": scope, "level": name} for scope, name in rows)
        show(Listing(("SCOPE", "LEVEL"), rows, items), output)


def _answer(listing: Callable[[Dump], Listing], output: Output, admin: str, file: str, follow: bool) -> None:
    """Ask, once or until interrupted, and show the listing that is made of the answer."""
    from ztun.cli.admin_client import fetch_dump
    from ztun.cli.watching import watch

    if not follow:
        show(listing(fetch_dump(admin, file)), output)
        return
    if file:
        raise typer.BadParameter("--watch asks a running proxy; a saved dump does not change")
    watch(lambda: listing(fetch_dump(admin, "")), lambda found: _show_again(found, output))


def _show_again(listing: Listing, output: Output) -> None:
    """One of many answers: on a terminal in the place of the last one, else as one of several documents."""
    if output is Output.JSON:
        import json

        typer.echo(json.dumps(listing.items))  # a line each, as tools for JSON streams expect
        return
    if output is Output.YAML:
        typer.echo("---")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().clear()
    show(listing, output)
    if output is Output.TABLE:
        typer.echo()


def show(listing: Listing, output: Output) -> None:
    """Write a listing to standard output."""
    if output is Output.JSON:
        import json

        typer.echo(json.dumps(listing.items, indent=2))
    elif output is Output.YAML:
        import yaml

        typer.echo(yaml.safe_dump(list(listing.items), sort_keys=False), nl=False)
    else:
        _show_table(listing)


def _show_table(listing: Listing) -> None:
    from rich.console import Console
    from rich.table import Table

    from ztun.telemetry.lines import printable

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in listing.columns:
        table.add_column(column, no_wrap=True, overflow="ignore")
    for row in listing.rows:
        table.add_row(*map(printable, row))
    # A row is one line however narrow the terminal is: that is what grep, awk and a copied line need.
    console = Console(width=MAX_LINE_CHARACTERS, markup=False, emoji=False, highlight=False)
    console.print(table, crop=False)
