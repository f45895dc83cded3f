"""The pods of a node as a directory of Pod documents describes them, followed while it changes.

Every Pod there is meant for the mesh unless it, or its Namespace document if that is there too, says otherwise (see
``annotations``). Other kinds are passed over, so the directory may be the mesh's configuration itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from ztun.agent.annotations import enrolment_of
from ztun.agent.enrolments import Enrolment
from ztun.mesh.document import Document, Problem
from ztun.resources.documents import (
    configuration_files,
    latest_of_each,
    parse_documents,
    read_file,
    unreadable,
    validate,
)
from ztun.resources.kubernetes import Namespace
from ztun.resources.schema import Metadata
from ztun.sources.files import Signature
from ztun.sources.watching import MAX_DELAY_SECONDS, POLL_SECONDS, SETTLE_SECONDS

CONFIRM_SECONDS = 0.2  # a file that is being written may look as if pods were gone


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pods that documents ask for, by uid."""

    pods: Mapping[str, Enrolment] = field(default_factory=dict)
    certain: bool = True
    """False when something could not be read: who is missing then is not known to be gone."""
    problems: tuple[Problem, ...] = ()


class PodDocuments:
    """Reads a directory (or a file). ``node``, unless empty, leaves out the pods of other nodes."""

    def __init__(self, path: Path, *, node: str = "", dns: bool = True) -> None:
        self._path = path
        self._node = node
        self._dns = dns
        self._last: Mapping[str, Enrolment] = {}
        self._missing_since: dict[str, float] = {}
        self._read_last: tuple[Signature, Wanted] | None = None

    def remember(self, enrolments: Iterable[Enrolment]) -> None:
        """Take what an earlier agent found as the last look: who is missing now may still come."""
        self._last = {one.pod.uid: one for one in enrolments if one.origin == "document"}

    @property
    def doubtful(self) -> bool:
        """Whether somebody was missing at the last look and is not known to be gone: look again soon."""
        return bool(self._missing_since)

    def look(self, now: float) -> Wanted:
        """Read everything. A pod is gone when it was missing for ``CONFIRM_SECONDS``; ``now`` is in seconds."""
        signature = self._signature()
        if self._read_last is None or self._read_last[0] != signature or not signature:
            self._read_last = (signature, self._read())
        found = self._read_last[1]
        missing = self._last.keys() - found.pods.keys()
        since = {uid: self._missing_since.get(uid, now) for uid in missing} if found.certain else {}
        kept = missing - {uid for uid, first in since.items() if now - first >= CONFIRM_SECONDS}
        self._missing_since = {uid: first for uid, first in since.items() if uid in kept}
        pods = {**found.pods, **{uid: self._last[uid] for uid in kept}}
        self._last = pods
        return Wanted(pods, found.certain, found.problems)

    def directories(self) -> set[Path]:
        """What to watch for changes."""
        path = self._path.absolute()
        if not path.is_dir():
            path = path.parent
            while not path.is_dir():
                path = path.parent
            return {path}
        try:
            return {path, *(file.parent for file in configuration_files(path))}
        except OSError:
            return {path}

    def _signature(self) -> Signature:
        """What changes when a file does; empty when it cannot be told."""
        found = {}
        try:
            for path in configuration_files(self._path):
                status = path.stat()
                found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            return {}
        return found

    def _read(self) -> Wanted:
        documents: list[Document] = []
        problems: list[Problem] = []
        try:
            files = configuration_files(self._path)
        except OSError as error:
            return Wanted({}, certain=False, problems=(unreadable(self._path, error),))
        for file in files:
            try:
                text = read_file(file)
            except FileNotFoundError:
                continue  # removed since the directory was listed
            except (OSError, ValueError) as error:
                problems.append(unreadable(file, error))
                continue
            read, wrong = parse_documents(text, file=str(file))
            documents += read
            problems += wrong
        certain = not problems
        latest, replaced = latest_of_each(documents)
        problems += replaced
        namespaces: dict[str, Metadata] = {}
        for document in latest:
            if document.kind == "Namespace" and not document.group:
                namespace, wrong = validate(Namespace, document)
                problems += wrong
                certain = certain and not wrong
                if namespace is not None:
                    namespaces[document.name] = namespace.metadata
        pods: dict[str, Enrolment] = {}
        for document in latest:
            if document.kind == "Pod" and not document.group:
                around = namespaces.get(document.namespace)
                enrolment, wrong = enrolment_of(document, around, node=self._node, dns=self._dns)
                if enrolment is not None and enrolment.pod.uid in pods:
                    other = pods[enrolment.pod.uid].pod
                    wrong = [document.problem(("metadata", "uid"), f"{other} has the same uid")]
                problems += wrong
                certain = certain and not wrong
                if enrolment is not None and not wrong:
                    pods[enrolment.pod.uid] = enrolment
        return Wanted(pods, certain, tuple(problems))


async def changes(directories: set[Path]) -> AsyncIterator[None]:
    """Tells of changes in directories, and every ``POLL_SECONDS``."""
    async for _ in awatch(
        *directories,
        watch_filter=None,
        debounce=round(MAX_DELAY_SECONDS * 1000),
        step=round(SETTLE_SECONDS * 1000),
        rust_timeout=round(POLL_SECONDS * 1000),
        yield_on_timeout=True,
        recursive=False,
    ):
        yield
