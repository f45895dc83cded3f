"""The mesh as configuration files describe it, followed while they change.

A new snapshot replaces the last one whole. What cannot be read keeps its last good state: a file with a
syntax error keeps all objects it had, an object that is not valid keeps its last valid version. What cannot be read
from the start has no good state: where a policy may be in it, everything is denied until it can be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from watchfiles import Change

from ztun.errors import ConfigError
from ztun.mesh.document import Problem
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import configuration_files, latest_of_each
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import Accepted, DocumentKey, translate
from ztun.sources.collection import collection_postponed, let_go
from ztun.sources.reading import Reading, unexpected
from ztun.sources.watching import POLL_SECONDS, Watch

Signature: TypeAlias = Mapping[str, tuple[int, int, int]]
"""(inode, size, modification time in ns) of each file."""


class FileSource:
    """Reads ``paths`` (files and directories) and follows them.

    ``namespace`` is that of objects that name none. Both callbacks are called by :meth:`run`, in its event
    loop: ``on_problems`` with everything that is wrong after each change, or with what keeps it from following,
    ``on_snapshot`` with the new state.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        *,
        namespace: str = "default",
        settings: MeshSettings | None = None,
        on_snapshot: Callable[[Snapshot], None] = lambda snapshot: None,
        on_problems: Callable[[list[Problem]], None] = lambda problems: None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._namespace = namespace
        self._settings = settings if settings is not None else MeshSettings()
        self._on_snapshot = on_snapshot
        self._on_problems = on_problems
        self._watch = Watch(
            lambda problem: on_problems([problem]), relevant=self._is_relevant, poll_seconds=poll_seconds
        )
        self._reading: Reading | None = None
        self._signature: Signature = {}
        self._accepted: Mapping[DocumentKey, Accepted] = MappingProxyType({})
        self._replaced: list[object] = []
        """What the last look replaced, for ``let_go``: at most one earlier state."""
        self._generation = 0
        self._fault: Problem | None = None
        """What the last look failed with, and was reported."""

    def load(self) -> Snapshot:
        """Read everything now. What is wrong is in the snapshot's ``problems``.

        Raises :class:`ConfigError` ``unreadable`` only when not one file or directory can be read.
        """
        signature = self._look()
        reading = self._read(self._reading)
        if not reading.readable:
            self._reading = None
            raise ConfigError(
                "unreadable",
                "; ".join(str(replace(problem, hint="")) for problem in reading.problems)
                or "no configuration was given",
                hint="give files or directories with Kubernetes YAML",
            )
        snapshot = self._translate(reading)
        self._reading, self._signature = reading, signature
        return snapshot

    async def run(self) -> None:
        """Follow the files until cancelled."""
        directories = await asyncio.to_thread(self._directories)
        while True:
            watched = directories
            async with aclosing(self._watch.notices(watched)) as notices:
                async for noticed in notices:
                    # In a thread, for with many files even looking takes longer than a connection should wait.
                    snapshot = await self._look_safely(noticed)
                    if snapshot is not None:
                        self._on_problems(list(snapshot.problems))
                        self._on_snapshot(snapshot)
                    if self._replaced:
                        await asyncio.to_thread(let_go, self._replaced)
                    directories = await asyncio.to_thread(self._directories)
                    if directories != watched:
                        break

    async def _look_safely(self, noticed: bool) -> Snapshot | None:
        """A look that fails changes nothing, is reported, and is repeated until the files can be read."""
        try:
            snapshot = await asyncio.to_thread(self.look, noticed=noticed)
        except Exception as error:
            problem = unexpected(", ".join(map(str, self._paths)), error)
            problem = replace(problem, hint=f"{problem.hint}; everything stays as it was")
            if problem != self._fault:
                self._fault = problem
                self._on_problems([problem])
            return None
        self._fault = None
        return snapshot

    def look(self, *, noticed: bool = True) -> Snapshot | None:
        """Read again: the new state, or None when nothing of what is read has changed.

        Without a notice the files are only read when their size or time has changed.
        """
        before = self._reading
        assert before is not None, "load comes first"
        signature = self._look()
        doubted = any(file.doubted for file in before.files.values())
        if not noticed and signature == self._signature and not doubted:
            return None
        with collection_postponed():
            reading = self._read(before)
        replaced: list[object] = [before.files, before.chunks]
        snapshot = None
        if reading.differs(before):
            replaced.append(self._accepted)
            snapshot = self._translate(reading)
        # Only now: after an exception the next look begins where this one began.
        self._reading, self._signature, self._replaced = reading, signature, replaced
        return snapshot

    def _read(self, before: Reading | None) -> Reading:
        reading = Reading(before, self._namespace)
        reading.read(self._paths)
        return reading

    def _translate(self, reading: Reading) -> Snapshot:
        documents = [document for file in reading.files.values() for document in file.documents]
        self._generation += 1
        with collection_postponed():
            latest, replaced = latest_of_each(documents)
            translation = translate(
                latest,
                settings=self._settings,
                problems=[*reading.problems, *replaced],
                last_accepted=self._accepted,
                generation=self._generation,
                policies_unread=bool(reading.unread),
            )
        self._accepted = translation.accepted
        return translation.snapshot

    def _look(self) -> Signature:
        found: dict[str, tuple[int, int, int]] = {}
        for origin in self._paths:
            try:
                for path in configuration_files(origin):
                    status = path.stat()
                    found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
            except OSError:
                found[str(origin)] = (0, 0, 0)
        return found

    def _directories(self) -> set[Path]:
        """What to watch: directories, for a watch on a file does not survive its replacement.

        Beside a directory of configuration a log may be written all the time, so nothing is watched there; a
        directory that is replaced as a whole is found by the next look that nobody asked for.
        """
        wanted: set[Path] = set()
        for origin in self._paths:
            if _answered(origin.is_dir):
                wanted.add(origin)
                wanted.update(path.parent for path in _files_below(origin))
            else:
                wanted.add(_existing_directory(origin.absolute().parent))
        return wanted

    def _is_relevant(self, change: Change, path: str) -> bool:
        """Whether a change in a watched directory can change what is read."""
        changed = Path(path)
        if changed.name.startswith(".."):
            return True  # the links of a mounted ConfigMap are swapped through ``..data``
        known = self._reading.files if self._reading is not None else {}
        directories = {origin.absolute() for origin in self._paths if _answered(origin.is_dir)}
        directories |= {Path(name).absolute().parent for name in known if Path(name) not in self._paths}
        return (
            changed.parent in directories
            or changed in {origin.absolute() for origin in self._paths}
            or not all(_answered(origin.exists) for origin in self._paths)
        )


def _files_below(directory: Path) -> list[Path]:
    try:
        return configuration_files(directory)
    except OSError:
        return []


def _existing_directory(path: Path) -> Path:
    while not _answered(path.is_dir):
        path = path.parent
    return path


def _answered(question: Callable[[], bool]) -> bool:
    """The answer; no where a directory above may not be searched."""
    try:
        return question()
    except OSError:
        return False
