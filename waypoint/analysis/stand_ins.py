"""Pods and addresses for files that describe none, so that a decision can be explained before anything runs.

Files that people write hold Deployments and Services, not what a cluster makes of them. Here Deployments become pods,
and pods and Services without an address get one, from ranges that no cluster uses (RFC 1112 section 4).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ztun.lab.deployment import Deployment, pods_of
from ztun.mesh.document import Document
from ztun.resources.documents import validate

SERVICE_RANGE = ipaddress.IPv4Network("240.240.0.0/16")
POD_RANGE = ipaddress.IPv4Network("240.241.0.0/16")


def with_stand_ins(documents: Sequence[Document]) -> tuple[list[Document], bool]:
    """The documents completed, and whether anything had to be added."""
    pods = [document for document in documents if document.kind == "Pod"]
    completed: list[Document] = []
    addresses, clusters = POD_RANGE.hosts(), SERVICE_RANGE.hosts()
    added = False
    for document in documents:
        changed = document
        if document.kind == "Pod":
            changed = _with_address(document, addresses)
        elif document.kind == "Service" and not document.group:
            changed = _with_cluster_ip(document, clusters)
        completed.append(changed)
        added |= changed is not document
        if document.kind == "Deployment" and not _running(document, pods):
            made = [_with_address(pod, addresses) for pod in _pods(document)]
            completed += made
            added |= bool(made)
    return [replace(document, order=order) for order, document in enumerate(completed)], added


def _running(deployment: Document, pods: Sequence[Document]) -> bool:
    labels = _mapping(_mapping(_mapping(deployment.data.get("spec")).get("template")).get("metadata")).get(
        "labels"
    )
    wanted = _mapping(labels).items()
    return any(
        pod.namespace == deployment.namespace
        and wanted <= _mapping(_mapping(pod.data.get("metadata")).get("labels")).items()
        for pod in pods
    )


def _pods(document: Document) -> Iterator[Document]:
    model, _ = validate(Deployment, document)
    if model is None:
        return
    for data in pods_of(document, model):
        name = data["metadata"]["name"]
        yield Document("v1", "Pod", document.namespace, name, data, locator=document.locator)


def _with_address(pod: Document, addresses: Iterator[ipaddress.IPv4Address]) -> Document:
    status = _mapping(pod.data.get("status"))
    if status.get("podIP"):
        return pod
    return replace(pod, data={**pod.data, "status": {**status, "podIP": str(next(addresses))}})


def _with_cluster_ip(service: Document, addresses: Iterator[ipaddress.IPv4Address]) -> Document:
    spec = _mapping(service.data.get("spec"))
    if spec.get("clusterIP") or spec.get("clusterIPs") or spec.get("type") == "ExternalName":
        return service
    return replace(service, data={**service.data, "spec": {**spec, "clusterIP": str(next(addresses))}})


def _mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}
