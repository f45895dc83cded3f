"""Collecting findings: severity from the table of codes, position from the document."""

from __future__ import annotations

from collections.abc import Iterable

from waypoint.analysis.codes import CODES
from ztun.mesh.document import Document, FieldPath, Problem, Severity
from ztun.routing import Diagnostic

MAX_FINDINGS = 100_000  # an analysis nobody reads to the end; bounds memory on a hostile configuration


class Report:
    """The findings about a set of documents, without repetitions, in the order in which they were found."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, FieldPath, str], Diagnostic] = {}

    def add(
        self,
        document: Document,
        code: str,
        path: FieldPath,
        message: str,
        hint: str = "",
        *,
        severity: Severity | None = None,
    ) -> None:
        """Note one finding about a field of a document."""
        level = severity or CODES[code].severity
        self.take([Diagnostic(code, level, document.label, path, message, hint, document)])

    def take(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Note findings that somebody else made."""
        for diagnostic in diagnostics:
            if len(self._found) < MAX_FINDINGS:
                key = (diagnostic.code, diagnostic.subject, diagnostic.path, diagnostic.message)
                self._found.setdefault(key, diagnostic)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All findings, without positions."""
        return tuple(self._found.values())

    def problems(self) -> list[Problem]:
        """All findings, with positions."""
        return [diagnostic.problem() for diagnostic in self._found.values()]
