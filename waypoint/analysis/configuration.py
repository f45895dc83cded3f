"""What is analyzed: all documents, the mesh they describe, and the compiled routing configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from waypoint.analysis.population import Population
from waypoint.routes.index import RouteIndex
from waypoint.routes.model import VirtualService
from waypoint.routes.names import host_matches
from ztun.mesh.document import Document, Problem
from ztun.mesh.model import Service
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import read_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate


@dataclass(frozen=True)
class Configuration:
    """One configuration, read whole. ``problems`` are those met while reading it."""

    documents: Sequence[Document]
    problems: Sequence[Problem]
    snapshot: Snapshot
    index: RouteIndex

    @cached_property
    def population(self) -> Population:
        """The labels of everything that is or will be a pod."""
        return Population(self.documents, self.snapshot)

    @cached_property
    def by_label(self) -> Mapping[str, Document]:
        """Documents by ``Kind namespace/name``."""
        return {document.label: document for document in self.documents}

    def of_kind(self, group: str, kind: str) -> list[Document]:
        """All documents of a kind."""
        return [one for one in self.documents if one.kind == kind and one.group == group]

    def services_of(self, owner: VirtualService) -> list[Service]:
        """The services whose hostname a VirtualService matches."""
        found: dict[tuple[str, str], Service] = {}
        for host in owner.hosts:
            if host.startswith("*"):
                for service in self.snapshot.services.values():
                    if host_matches(host, service.hostname):
                        found[service.key] = service
                continue
            for service in (*self.snapshot.services_with_hostname(host), *self._wildcard_services(host)):
                found[service.key] = service
        return list(found.values())

    def _wildcard_services(self, host: str) -> list[Service]:
        return [service for service in self._wildcards if host_matches(service.hostname, host)]

    @cached_property
    def _wildcards(self) -> list[Service]:
        return [one for one in self.snapshot.services.values() if one.hostname.startswith("*")]


def configuration_of(documents: Sequence[Document], problems: Iterable[Problem] = ()) -> Configuration:
    """Translate and compile documents that were already read."""
    translation = translate(documents, settings=MeshSettings(), problems=problems)
    snapshot = translation.snapshot
    return Configuration(documents, snapshot.problems, snapshot, RouteIndex(snapshot))


def read_configuration(paths: Iterable[str | Path], *, namespace: str = "default") -> Configuration:
    """Read files and directories; what cannot be read is among the problems."""
    documents, problems = read_documents(paths, namespace=namespace)
    return configuration_of(documents, problems)
