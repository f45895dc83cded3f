"""The labels of everything that is, or will be, a pod: for selectors that select nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ztun.mesh.document import Document
from ztun.mesh.model import Service
from ztun.mesh.snapshot import Snapshot

TEMPLATED_KINDS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"})


class Population:
    """Label sets by namespace: pods, the templates of their owners, and workloads from outside the cluster."""

    def __init__(self, documents: Sequence[Document], snapshot: Snapshot) -> None:
        self._by_namespace: defaultdict[str, dict[frozenset[tuple[str, str]], None]] = defaultdict(dict)
        self._selectors: dict[tuple[str, str], Mapping[str, str]] = {}
        for document in documents:
            if document.kind == "Pod":
                self._add(document.namespace, _at(document.data, "metadata", "labels"))
            elif document.kind in TEMPLATED_KINDS:
                labels = _at(document.data, "spec", "template", "metadata", "labels")
                self._add(document.namespace, labels)
            elif document.kind == "Service" and not document.group:
                self._selectors[document.namespace, document.name] = _text_map(
                    _at(document.data, "spec", "selector")
                )
        for workload in snapshot.workloads.values():
            self._add(workload.namespace, workload.labels)
        self._snapshot = snapshot

    def _add(self, namespace: str, labels: object) -> None:
        self._by_namespace[namespace][frozenset(_text_map(labels).items())] = None

    def __bool__(self) -> bool:
        return bool(self._by_namespace)

    def selected(
        self, labels: Mapping[str, str], namespace: str | None = None
    ) -> list[tuple[str, Mapping[str, str]]]:
        """(namespace, labels) of all that carry ``labels``; in every namespace when none is given."""
        wanted = frozenset(labels.items())
        places = [namespace] if namespace is not None else list(self._by_namespace)
        return [
            (place, dict(found))
            for place in places
            for found in self._by_namespace.get(place, {})
            if wanted <= found
        ]

    def endpoints(self, service: Service) -> list[Mapping[str, str]]:
        """The label sets behind a service: by its selector, or of the endpoints it was given."""
        selector = self._selectors.get((service.namespace, service.name))
        found = [labels for _, labels in self.selected(selector, service.namespace)] if selector else []
        found += [endpoint.workload.labels for endpoint in self._snapshot.endpoints(service.key)]
        return found


def _at(data: Any, *path: str) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _text_map(data: object) -> dict[str, str]:
    if not isinstance(data, Mapping):
        return {}
    return {str(key): value for key, value in data.items() if isinstance(value, str)}
