"""A configuration object as it was written, its place in a file, and what is wrong there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

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


@dataclass(frozen=True)
class Document:
    """One object. ``data`` is the whole of it (``metadata`` and ``spec`` included) and must not be changed.

    ``created`` is ``metadata.creationTimestamp`` or empty; ``order`` counts documents in the order of
    loading; ``namespace_defaulted`` tells that the document itself names no namespace.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    data: dict[str, Any] = field(hash=False)
    created: str = ""
    order: int = 0
    namespace_defaulted: bool = False
    locator: Callable[[FieldPath], Location] | None = field(default=None, repr=False, compare=False)
    """Finds the place of a field; positions are looked up only when something is to be said about them."""

    @cached_property
    def location(self) -> Location:
        """Where the object begins."""
        return self.locate()

    @property
    def group(self) -> str:
        """API group, empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def label(self) -> str:
        """``Kind namespace/name``, as messages show it."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """(group, kind, namespace, name): two documents with the same key are the same object."""
        return (self.group, self.kind, self.namespace, self.name)

    def locate(self, path: FieldPath = ()) -> Location:
        """Where the field at ``path`` stands; the nearest existing ancestor when it does not exist."""
        return self.locator(path) if self.locator is not None else Location("", 1, 1)

    def problem(
        self,
        path: FieldPath,
        message: str,
        *,
        hint: str = "",
        code: str = "SCHEMA",
        severity: Severity = "error",
    ) -> Problem:
        """A :class:`Problem` about the field at ``path`` of this document."""
        return Problem(self.locate(path), self.label, format_path(path), message, hint, code, severity)
