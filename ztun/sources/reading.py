"""One pass over all configuration files: what they hold now, and what stays as the last pass found it."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ztun.mesh.document import Document, Problem
from ztun.resources.documents import (
    configuration_files,
    may_hide_policy,
    parse_documents,
    read_file,
    unreadable,
)
from ztun.resources.yaml_text import parse_chunk

_DENIED = "a policy may stand there: until it can be read, every inbound connection is denied"


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What was last read from a file, and under which of the given paths it was found."""

    origin: Path
    text: str
    documents: Sequence[Document]
    doubted: bool = False
    """It was found empty since, once: what stays empty at the next look is meant."""


class Reading:
    """The files of one pass. ``last`` is the pass before, None at the start of a proxy.

    1. A file that cannot be read, or has documents that cannot, keeps all its objects of the last pass.
    2. A file that never could be read has nothing to keep. What appears broken in a running proxy is left out, for
    nothing of it was in force. At the start nobody knows what was in force before: where a policy may stand in such a
    file it is ``unread``, and stays so until it can be read.
    """

    def __init__(self, last: Reading | None, namespace: str) -> None:
        self.files: dict[str, ReadFile] = {}
        self.problems: list[Problem] = []
        self.chunks: dict[str, Any] = {}
        """Parsed documents by their text; only those of this pass, so the memory follows the configuration."""
        self.unread: set[str] = set()
        """Paths with what may be a policy and never could be read."""
        self.readable = False
        """Whether any path could be read."""
        self._first = last is None
        self._known: Mapping[str, ReadFile] = last.files if last is not None else {}
        self._parsed: Mapping[str, Any] = last.chunks if last is not None else {}
        self._was_unread = frozenset(last.unread) if last is not None else frozenset()
        self._namespace = namespace

    def read(self, paths: Iterable[Path]) -> None:
        """Read files and directories."""
        for origin in paths:
            try:
                found = configuration_files(origin)
            except OSError as error:
                kept = {path: file for path, file in self._known.items() if file.origin == origin}
                self.files |= kept
                self._not_read(origin, unreadable(origin, error), known=bool(kept))
                continue
            self.readable = self.readable or not found
            for path in found:
                self._read_file(origin, path)
        # The pass before is no longer needed, and must not hang on this one.
        self._known, self._parsed = {}, {}

    def differs(self, other: Reading) -> bool:
        """Whether another state of the mesh, or of what is wrong with its files, follows from it."""

        def content(reading: Reading) -> object:
            texts = {path: file.text for path, file in reading.files.items()}
            return reading.problems, reading.unread, texts

        return content(self) != content(other)

    def _read_file(self, origin: Path, path: Path) -> None:
        name = str(path)
        earlier = self._known.get(name)
        try:
            text = read_file(path)
        except (OSError, ValueError) as error:
            self._lost(path, unreadable(path, error), earlier)
            return
        self.readable = True
        if earlier is not None and earlier.documents and not text.strip() and not earlier.doubted:
            # An editor may empty a file before it writes it; only what stays empty is meant.
            self.files[name] = replace(earlier, doubted=True)
            self.unread |= self._was_unread & {name}
            return
        try:
            documents, wrong = parse_documents(text, file=name, namespace=self._namespace, parse=self._parse)
        except Exception as error:  # a fault of ours must neither end the proxy nor take what is in force
            self._lost(path, unexpected(name, error), earlier)
            return
        if wrong and (self._first or name in self._was_unread) and may_hide_policy(text, wrong):
            self.unread.add(name)
            wrong = [_with(problem, _DENIED) for problem in wrong]
        elif wrong and earlier is not None:
            # An object without a readable name may be one that was there before, a policy for instance.
            documents = list(earlier.documents)
            wrong = [_with(problem, "all objects of this file stay as they were") for problem in wrong]
        self.problems += wrong
        self.files[name] = ReadFile(origin, text, documents)

    def _lost(self, path: Path, problem: Problem, earlier: ReadFile | None) -> None:
        if earlier is not None:
            self.files[str(path)] = earlier
        self._not_read(path, problem, known=earlier is not None)

    def _not_read(self, path: Path, problem: Problem, *, known: bool) -> None:
        consequence = "its objects stay in force" if known else "it is left out"
        if str(path) in self._was_unread or (self._first and not known):
            self.unread.add(str(path))
            consequence = _DENIED
        self.problems.append(_with(problem, consequence))

    def _parse(self, text: str) -> Any:
        data = self._parsed[text] if text in self._parsed else parse_chunk(text)
        self.chunks[text] = data
        return data


def unexpected(where: str, error: Exception) -> Problem:
    """The problem that stands for an exception that nobody thought of, with the line that raised it."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    message = f"cannot be read, by a fault of ztun: {error!r:.200} at {raised.filename}:{raised.lineno}"
    return Problem(None, where, "", message, "please report it together with what was changed", "FAULT")


def _with(problem: Problem, consequence: str) -> Problem:
    return replace(problem, hint=f"{problem.hint}; {consequence}" if problem.hint else consequence)
