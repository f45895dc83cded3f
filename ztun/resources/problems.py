"""A place in a configuration file, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

FieldPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the root of an object, e.g. ``("spec", "tcp", 0, "match")``."""
Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A position in a file; ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


def format_path(path: Iterable[str | int]) -> str:
    """``spec.tcp[0].match`` for ``("spec", "tcp", 0, "match")``; a key with a dot is quoted in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "." in part or "/" in part:
            text += f"[{part!r}]"
        else:
            text += f".{part}" if text else part
    return text


@dataclass(frozen=True)
class Problem:
    """One finding about a document. ``object`` is ``Kind namespace/name`` (or empty when unknown).

    ``severity`` says what followed: ``error``, the object (or the part named in the message) was left out;
    ``warning``, it was taken but does not do what it seems to say; ``info``, nothing was lost.
    """

    location: Location | None
    object: str
    path: str
    message: str
    hint: str = ""
    code: str = "SCHEMA"
    severity: Severity = "error"

    def __str__(self) -> str:
        where = " ".join(part for part in (str(self.location or ""), self.object, self.path) if part)
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}: {self.message}{hint}" if where else f"{self.message}{hint}"
