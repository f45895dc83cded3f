"""Workloads in the making: services and policies attach to them by label, then they are finished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ztun.mesh.model import NamespacedName, Workload


@dataclass(slots=True)
class WorkloadDraft:
    """A workload without its memberships. ``named_ports`` are the container ports that have a name."""

    base: Workload
    named_ports: Mapping[str, int] = field(default_factory=dict)
    services: dict[NamespacedName, dict[int, int]] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)

    def finish(self) -> Workload:
        """The workload with everything that was attached to it."""
        if not self.services and not self.policies:
            return self.base
        services = {key: MappingProxyType(ports) for key, ports in self.services.items()}
        return replace(
            self.base,
            services=MappingProxyType(services),
            authorization_policies=tuple(dict.fromkeys(self.policies)),
        )


class DraftIndex:
    """All drafts, found by namespace and labels without looking at each."""

    def __init__(self, drafts: Iterable[WorkloadDraft]) -> None:
        self._all: list[WorkloadDraft] = []
        self._by_label: defaultdict[tuple[str, str, str], list[WorkloadDraft]] = defaultdict(list)
        self._by_namespace: defaultdict[str, list[WorkloadDraft]] = defaultdict(list)
        self._by_address: dict[tuple[str, str], WorkloadDraft] = {}
        self._uids: set[str] = set()
        for draft in drafts:
            self.add(draft)

    def __iter__(self) -> Iterator[WorkloadDraft]:
        return iter(self._all)

    def finish(self) -> Iterator[Workload]:
        """Every workload; each draft is dropped as it is finished, and the index is empty afterwards.

        Thousands of drafts dropped at once would hold up the threads that carry packets.
        """
        for index in (self._by_label, self._by_namespace, self._by_address, self._uids):
            index.clear()
        self._all.reverse()
        while self._all:
            yield self._all.pop().finish()

    def add(self, draft: WorkloadDraft) -> None:
        """Take a draft in; one whose uid is taken gets a number appended to it."""
        base, number = draft.base, 2
        while draft.base.uid in self._uids:
            draft.base = replace(base, uid=f"{base.uid}/{number}")
            number += 1
        base = draft.base
        self._uids.add(base.uid)
        self._all.append(draft)
        self._by_namespace[base.namespace].append(draft)
        for key, value in base.labels.items():
            self._by_label[base.namespace, key, value].append(draft)
        if not base.host_network:
            for ip in base.addresses:
                self._by_address.setdefault((base.network, ip), draft)

    def at(self, network: str, ip: str) -> WorkloadDraft | None:
        """The draft that owns an address."""
        return self._by_address.get((network, ip))

    def in_namespace(self, namespace: str) -> list[WorkloadDraft]:
        """All drafts of a namespace."""
        return self._by_namespace.get(namespace, [])

    def select(self, namespace: str | None, labels: Mapping[str, str]) -> list[WorkloadDraft]:
        """Those with all the labels (all, if none are asked for); ``namespace`` None is every namespace."""
        if namespace is None:
            return [draft for draft in self._all if labels.items() <= draft.base.labels.items()]
        if not labels:
            return self.in_namespace(namespace)
        rarest = min(
            (self._by_label.get((namespace, key, value), []) for key, value in labels.items()), key=len
        )
        if len(labels) == 1:
            return rarest
        return [draft for draft in rarest if labels.items() <= draft.base.labels.items()]
