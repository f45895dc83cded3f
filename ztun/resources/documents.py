"""Files to objects: every Kubernetes document with its name and its place in the file.

Accepts what ``kubectl get -o yaml`` and people write: several documents per file, ``List`` objects, JSON,
directories. What cannot be read becomes a :class:`Problem`; everything else is returned.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from ztun.mesh.document import Document, FieldPath, Location, Problem, Severity, format_path
from ztun.resources.chunks import split_chunks
from ztun.resources.yaml_text import MAX_TEXT_BYTES, TextError, locate, parse_chunk

__all__ = [
    "Document",
    "FieldPath",
    "Location",
    "Problem",
    "Severity",
    "configuration_files",
    "format_path",
    "latest_of_each",
    "may_hide_policy",
    "parse_documents",
    "read_documents",
    "read_file",
    "validate",
]

MAX_PROBLEMS_PER_DOCUMENT = 50  # more do not help to understand a document that is wrong throughout
PLAIN_MESSAGES = {
    "missing": "required",
    "extra_forbidden": "unknown field",
    "model_type": "should be a mapping",
    "dict_type": "should be a mapping",
    "list_type": "should be a list",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "bool_type": "should be true or false",
}
"""By pydantic's error type; its own words name Python's types."""
DEFAULT_HINTS = {
    "extra_forbidden": "check the spelling and the indentation",
    "string_type": "put it in quotes",
}
SUFFIXES = frozenset({".yaml", ".yml", ".json"})
POLICY_KINDS = ("AuthorizationPolicy", "PeerAuthentication")
CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "GatewayClass", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
)

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

M = TypeVar("M", bound=pydantic.BaseModel)


def parse_documents(
    text: str, *, file: str, namespace: str = "default", parse: Callable[[str], Any] = parse_chunk
) -> tuple[list[Document], list[Problem]]:
    """All objects of a text. ``namespace`` is given to objects without one (not to cluster-scoped kinds).

    ``parse`` makes data of the text of one YAML document; a caller may remember results there.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for chunk in split_chunks(text):
        try:
            data = parse(chunk.text)
        except TextError as error:
            place = Location(file, error.line + chunk.line, error.column)
            problems.append(Problem(place, "", "", str(error), error.hint, "YAML"))
            continue
        for base, item, inherited in _objects(data, (), {}):
            found = _document(item, inherited, namespace, file, chunk.text, chunk.line, base, len(documents))
            if isinstance(found, Problem):
                problems.append(found)
            else:
                documents.append(found)
    return documents, problems


def may_hide_policy(text: str, problems: Iterable[Problem]) -> bool:
    """Whether one of the documents of a text that could not be read may be a policy: it has the name of its kind."""
    lines = [problem.location.line for problem in problems if problem.location is not None]
    return any(
        any(kind in chunk.text for kind in POLICY_KINDS)
        and any(chunk.line < line <= chunk.line + chunk.text.count("\n") + 1 for line in lines)
        for chunk in split_chunks(text)
    )


def _objects(
    data: Any, base: FieldPath, inherited: dict[str, Any]
) -> Iterator[tuple[FieldPath, Any, dict[str, Any]]]:
    """The objects in a document: itself, or the items of a List (of any level)."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if not (isinstance(kind, str) and kind.endswith("List") and isinstance(data.get("items"), list)):
        yield base, data, inherited
        return
    # Items of a typed list (``PodList``) may leave out their own type, as the API server does.
    typed = {}
    if kind != "List":
        typed = {"apiVersion": data.get("apiVersion"), "kind": kind.removesuffix("List")}
    for index, item in enumerate(data["items"]):
        yield from _objects(item, (*base, "items", index), typed)


def _document(
    data: Any,
    inherited: dict[str, Any],
    default_namespace: str,
    file: str,
    text: str,
    text_line: int,
    base: FieldPath,
    order: int,
) -> Document | Problem:
    def wrong(path: FieldPath, message: str, hint: str = "") -> Problem:
        place = _locate(file, text, text_line, base, path)
        return Problem(place, label, format_path(path), message, hint)

    label = ""
    if not isinstance(data, dict):
        return wrong((), "a Kubernetes object is expected", "it needs apiVersion, kind and metadata")
    data = inherited | data if inherited else data
    api_version, kind, metadata = data.get("apiVersion"), data.get("kind"), data.get("metadata")
    if not isinstance(api_version, str) or not api_version:
        return wrong(("apiVersion",), "required, as text", "for example v1 or networking.istio.io/v1")
    if "." in api_version and "/" not in api_version:
        # Not a kind that is passed over: it may be a policy.
        return wrong(("apiVersion",), "a group without a version", f"for example {api_version}/v1")
    if not isinstance(kind, str) or not kind:
        return wrong(("kind",), "required, as text", "for example Service")
    label = kind
    if not isinstance(metadata, dict):
        return wrong(("metadata",), "required, as a mapping", "with at least a name")
    name = metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return wrong(("metadata", "name"), "required: letters, digits, '-' and '.', at most 253 characters")
    label = f"{kind} {name}"
    given = metadata.get("namespace")
    if given is not None and (not isinstance(given, str) or (given and not _NAMESPACE.fullmatch(given))):
        return wrong(("metadata", "namespace"), "use lower-case letters, digits and '-', at most 63")
    cluster_scoped = kind in CLUSTER_SCOPED
    namespace = "" if cluster_scoped else given or default_namespace
    created = metadata.get("creationTimestamp")
    return Document(
        api_version=api_version,
        kind=kind,
        namespace=namespace,
        name=name,
        data=data,
        created=created if isinstance(created, str) else "",
        order=order,
        namespace_defaulted=not given and not cluster_scoped,
        locator=partial(_locate, file, text, text_line, base),
    )


def _locate(file: str, text: str, text_line: int, base: FieldPath, path: FieldPath) -> Location:
    """The place of a field of the object at ``base`` in a text that begins at ``text_line`` of a file."""
    line, column = locate(text, base + path)
    return Location(file, line + text_line, column)


def configuration_files(path: Path) -> list[Path]:
    """The files that ``path`` stands for: itself, or every YAML and JSON file below it, sorted by name.

    Hidden entries are skipped, so a mounted ConfigMap is read once, through its links, not again through
    ``..data``. Raises ``OSError`` when the path cannot be read.
    """
    if not path.is_dir():
        path.stat()
        return [path]
    found: list[Path] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += configuration_files(entry)
        elif entry.suffix.lower() in SUFFIXES:
            found.append(entry)
    return found


def read_file(path: Path, *, pipe: bool = False) -> str:
    """The text of a configuration file.

    Raises ``OSError``, or ``ValueError`` when too large, not UTF-8 or not a file: a pipe is waited for until somebody
    writes, so it is read only for who named it (``pipe``).
    """
    with open(path, "rb", opener=None if pipe else _open_regular) as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"larger than {MAX_TEXT_BYTES // (1024 * 1024)} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from error


def _open_regular(path: str, flags: int) -> int:
    """Opened before it is looked at: what has been looked at may be replaced."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise ValueError(
            "a pipe, which nobody may write to: give a file" if stat.S_ISFIFO(kind) else "no regular file"
        )
    return descriptor


def read_documents(
    paths: Iterable[str | Path], *, namespace: str = "default"
) -> tuple[list[Document], list[Problem]]:
    """All objects of files and directories, in that order. Of two with the same key the later one counts.

    A path may be a pipe, as shells make them of ``<(command)``.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            files = configuration_files(Path(path))
        except OSError as error:
            problems.append(unreadable(path, error))
            continue
        for file in files:
            try:
                text = read_file(file, pipe=file == Path(path))
            except (OSError, ValueError) as error:
                problems.append(unreadable(file, error))
                continue
            found, wrong = parse_documents(text, file=str(file), namespace=namespace)
            documents += found
            problems += wrong
    documents, replaced = latest_of_each(documents)
    return documents, problems + replaced


def unreadable(path: str | Path, error: OSError | ValueError) -> Problem:
    """The problem that stands for a file or directory that could not be read."""
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return Problem(None, str(path), "", f"cannot be read: {reason}", code="FILE")


def latest_of_each(documents: Sequence[Document]) -> tuple[list[Document], list[Problem]]:
    """One document per key, the last one, numbered in order; each one that was replaced is reported."""
    latest: dict[tuple[str, str, str, str], Document] = {}
    problems: list[Problem] = []
    for document in documents:
        earlier = latest.pop(document.key, None)
        if earlier is not None:
            message = f"replaces the object of the same name at {earlier.location}"
            hint = "keep one of the two"
            problems.append(document.problem((), message, hint=hint, code="DUPLICATE", severity="warning"))
        latest[document.key] = document
    return [
        document if document.order == order else replace(document, order=order)
        for order, document in enumerate(latest.values())
    ], problems


def validate(model: type[M], document: Document) -> tuple[M | None, list[Problem]]:
    """The document as a ``model``, or the problems that prevent it, each with its position.

    A validator may raise ``PydanticCustomError`` with ``code``, ``hint`` or ``severity`` in its context; they
    end up in the problem. A problem of lower severity than ``error`` still means that the document did not
    validate.
    """
    try:
        return model.model_validate(document.data), []
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS_PER_DOCUMENT]
    return None, list(dict.fromkeys(_problem(document, one) for one in found))


def _problem(document: Document, error: Any) -> Problem:
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    path = _existing(document.data, error["loc"], keep_missing=kind == "missing")
    message: str = error["msg"]
    if kind in PLAIN_MESSAGES:
        message = PLAIN_MESSAGES[kind]
    else:
        message = message.removeprefix("Value error, ").removeprefix("Input ")
    severity = context.get("severity")
    default_hint = DEFAULT_HINTS.get(kind, "")
    return document.problem(
        path,
        message,
        hint=str(context.get("hint", default_hint)),
        code=str(context.get("code", "SCHEMA")),
        severity=severity if severity in ("warning", "info") else "error",
    )


def _existing(data: Any, loc: tuple[str | int, ...], *, keep_missing: bool) -> FieldPath:
    """The part of a pydantic location that exists in the data (it also names branches of unions)."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif keep_missing and part == loc[-1] and isinstance(data, dict):
            path.append(part)
            break
        else:
            continue
        path.append(part)
    return tuple(path)
