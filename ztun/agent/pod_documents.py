"""The pods of a node as a directory of Pod documents describes them, followed while it changes.

Every Pod there is meant for the mesh unless it opts out the way Istio's labels and annotations do. Other kinds are
passed over, so the directory may be the mesh's configuration itself.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from ztun.agent.enrolments import Enrolment, PodIdentity
from ztun.agent.pod_namespace import namespace_path
from ztun.agent.rules import CaptureOptions
from ztun.errors import ConfigError
from ztun.mesh.document import Document, Problem
from ztun.resources.documents import (
    configuration_files,
    latest_of_each,
    parse_documents,
    read_file,
    unreadable,
    validate,
)
from ztun.resources.kubernetes import Pod
from ztun.resources.schema import DATAPLANE_MODE, REDIRECTION, SIDECAR_STATUS
from ztun.sources.files import MAX_DELAY_SECONDS, POLL_SECONDS, SETTLE_SECONDS, Signature

NETNS = "ztun.io/netns"
"""Annotation: name or path of the pod's network namespace; without it the one named as the pod."""
DNS_CAPTURE = "ambient.istio.io/dns-capture"
BYPASS_INBOUND = "ambient.istio.io/bypass-inbound-capture"
VIRTUAL_INTERFACES = "istio.io/reroute-virtual-interfaces"
CONFIRM_SECONDS = 0.2  # a file that is being written may look as if pods were gone

_NAMESPACE_OF_UIDS = uuid.UUID(
    "6d1d2c52-6a0e-4a52-9a7c-7f5d0a7e6f11"
)  # drawn once, for uids that are derived
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pods that documents ask for, by uid."""

    pods: Mapping[str, Enrolment] = field(default_factory=dict)
    certain: bool = True
    """False when something could not be read: who is missing then is not known to be gone."""
    problems: tuple[Problem, ...] = ()


def derived_uid(namespace: str, name: str) -> str:
    """The uid of a pod whose document has none: the same each time."""
    return str(uuid.uuid5(_NAMESPACE_OF_UIDS, f"{namespace}/{name}"))


class PodDocuments:
    """Reads a directory (or a file). ``node``, unless empty, leaves out the pods of other nodes."""

    def __init__(self, path: Path, *, node: str = "", dns: bool = True) -> None:
        self._path = path
        self._node = node
        self._dns = dns
        self._last: Mapping[str, Enrolment] = {}
        self._doubted: frozenset[str] = frozenset()
        self._read_last: tuple[Signature, Wanted] | None = None

    def remember(self, enrolments: Iterable[Enrolment]) -> None:
        """Take what an earlier agent found as the last look: who is missing now must be missing twice."""
        self._last = {one.pod.uid: one for one in enrolments if one.origin == "document"}

    @property
    def doubtful(self) -> bool:
        """Whether somebody was missing at the last look for the first time: look again soon."""
        return bool(self._doubted)

    def look(self) -> Wanted:
        """Read everything now. A pod is gone when two looks in a row did not find it."""
        signature = self._signature()
        if self._read_last is None or self._read_last[0] != signature or not signature:
            self._read_last = (signature, self._read())
        found = self._read_last[1]
        missing = self._last.keys() - found.pods.keys()
        kept = missing if not found.certain else missing - self._doubted
        self._doubted = frozenset(missing) if found.certain else frozenset()
        pods = {**found.pods, **{uid: self._last[uid] for uid in kept}}
        self._doubted &= pods.keys()
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
        pods: dict[str, Enrolment] = {}
        for document in latest:
            if document.kind != "Pod":
                continue
            enrolment, wrong = self._enrolment(document)
            problems += wrong
            if wrong:
                certain = False
            elif enrolment is not None:
                pods[enrolment.pod.uid] = enrolment
        return Wanted(pods, certain, tuple(problems))

    def _enrolment(self, document: Document) -> tuple[Enrolment | None, list[Problem]]:
        """What a document asks for; None when its pod stays out of the mesh."""
        pod, problems = validate(Pod, document)
        if pod is None:
            return None, problems
        if self._node and pod.spec.node_name and pod.spec.node_name != self._node:
            return None, []
        if stays_out(pod):
            return None, []
        given = document.data["metadata"].get("uid")
        if given is not None and not (isinstance(given, str) and _UID.fullmatch(given)):
            return None, [
                document.problem(("metadata", "uid"), "letters, digits, '-', '.' and '_', at most 128")
            ]
        annotation = pod.metadata.annotation
        try:
            options = CaptureOptions(
                dns=self._dns and annotation(DNS_CAPTURE) != "false",
                inbound=annotation(BYPASS_INBOUND) != "true",
                virtual_interfaces=tuple(
                    name.strip() for name in annotation(VIRTUAL_INTERFACES).split(",") if name.strip()
                ),
            )
        except ConfigError as error:
            place = ("metadata", "annotations", VIRTUAL_INTERFACES)
            return None, [document.problem(place, str(error), hint=error.hint)]
        return Enrolment(
            pod=PodIdentity(
                uid=given or derived_uid(document.namespace, document.name),
                name=document.name,
                namespace=document.namespace,
                service_account=pod.spec.service_account_name or "default",
            ),
            netns=namespace_path(annotation(NETNS) or document.name),
            origin="document",
            options=options,
        ), []


def stays_out(pod: Pod) -> bool:
    """Whether a pod is none of the node proxy's: it has ended, has the node's own network or says so."""
    return (
        bool(pod.spec.host_network)
        or pod.status.phase in ("Succeeded", "Failed")
        or pod.metadata.label(DATAPLANE_MODE) == "none"
        or pod.metadata.annotation(REDIRECTION) == "disabled"
        or bool(pod.metadata.annotation(SIDECAR_STATUS))
    )


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
