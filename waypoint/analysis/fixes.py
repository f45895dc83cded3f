"""Corrected documents: what can be put right without guessing at somebody's intention, in several rounds.

A round analyzes, applies every fix it knows, and the next one analyzes the result, because one fix can uncover another:
a DestinationRule gets the right host, then its missing subset. What is changed stands as a comment above the document.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import yaml

from waypoint.analysis.analyzer import examine
from waypoint.analysis.configuration import Configuration, configuration_of
from waypoint.analysis.fix_destinations import FIXES as DESTINATION_FIXES
from waypoint.analysis.fix_destinations import missing_subsets
from waypoint.analysis.fix_virtual_service import FIXES as VIRTUAL_SERVICE_FIXES
from ztun.mesh.document import Document
from ztun.routing import Diagnostic

MAX_ROUNDS = 5  # no chain of fixes is longer

Fix = Callable[[Configuration, Diagnostic, dict[str, Any]], str]
"""Changes the data of a document for one finding; returns what it did, or an empty string for nothing."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """The configuration after all fixes, and what was done to which document (by label)."""

    configuration: Configuration
    changes: Mapping[str, tuple[str, ...]]


FIXES: Mapping[str, Fix] = MappingProxyType({**DESTINATION_FIXES, **VIRTUAL_SERVICE_FIXES})


def corrected(configuration: Configuration) -> Corrected:
    """Apply every fix there is."""
    changes: dict[str, list[str]] = {}
    for _ in range(MAX_ROUNDS):
        edited, added = _round(configuration, changes)
        if not edited:
            break
        documents = [_edited(one, edited) for one in configuration.documents]
        configuration = configuration_of([*documents, *(_edited(one, edited) for one in added)])
    return Corrected(configuration, MappingProxyType({label: tuple(done) for label, done in changes.items()}))


def _round(
    configuration: Configuration, changes: dict[str, list[str]]
) -> tuple[dict[str, dict[str, Any]], list[Document]]:
    """New data of documents by label, and new documents. Subsets come last, when hosts are right."""
    edited: dict[str, dict[str, Any]] = {}
    for finding in examine(configuration).diagnostics():
        fix, document = FIXES.get(finding.code), finding.document
        if fix is None or document is None:
            continue
        data = edited.get(document.label) or copy.deepcopy(document.data)
        done = fix(configuration, finding, data)
        if done:
            edited[document.label] = data
            _note(changes, document.label, f"{finding.code}: {done}")
    added: list[Document] = []
    if not edited:
        for document, data, done in missing_subsets(configuration):
            edited[document.label] = data
            _note(changes, document.label, done)
            if document.label not in configuration.by_label:
                added.append(document)
    return edited, added


def _note(changes: dict[str, list[str]], label: str, note: str) -> None:
    notes = changes.setdefault(label, [])
    if note not in notes:
        notes.append(note)


def _edited(document: Document, edited: Mapping[str, dict[str, Any]]) -> Document:
    data = edited.get(document.label)
    if data is None:
        return document
    given = data["metadata"].get("namespace")
    return replace(document, data=data, namespace_defaulted=document.namespace_defaulted and not given)


def yaml_of(result: Corrected) -> str:
    """The changed documents as YAML, each under comments that say what was changed."""
    texts = []
    for document in result.configuration.documents:
        done = result.changes.get(document.label)
        if done:
            comments = "".join(f"# fixed {note}\n" for note in done)
            texts.append(comments + yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True))
    return "---\n".join(texts)
