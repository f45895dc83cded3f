"""The options that every proxy takes, whatever its role, and how a bad value of one is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias, TypeVar

import typer

T = TypeVar("T")

TrustDomain: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help="Trust domain of the mesh.")]
Port: TypeAlias = Annotated[int, typer.Option(metavar="PORT", min=1, max=65535)]
LogFormat: TypeAlias = Annotated[
    Literal["text", "json"] | None,
    typer.Option(metavar="text|json", help="Form of log lines.", show_default="LOG_FORMAT, else text"),
]
LogLevel: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Level, or levels per scope.", show_default="RUST_LOG, else info"),
]
AccessLog: TypeAlias = Annotated[
    Literal["text", "json", "none"] | None,
    typer.Option(
        metavar="text|json|none",
        help="Form of the lines that report a connection.",
        show_default="as --log-format",
    ),
]


def usage_checked(make: Callable[[], T]) -> T:
    """Give what ``make`` gives; a ``ConfigError`` of it becomes a usage error with the same words."""
    from ztun.errors import ConfigError

    try:
        return make()
    except ConfigError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise typer.BadParameter(f"{error}{hint}") from error
