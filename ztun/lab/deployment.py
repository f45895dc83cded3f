"""Deployments become pods, as a cluster's controllers would make them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from ztun.mesh.document import Document
from ztun.resources.schema import Labels, Lenient, Object, Text

MAX_REPLICAS = 50  # pods of one Deployment; each server is a process of its own
# Kubernetes leaves vowels and look-alikes out of generated names.
NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class TemplateMetadata(Lenient):
    """``metadata`` of a pod template."""

    labels: Labels = Field(default_factory=dict)
    annotations: dict[str, Text] = Field(default_factory=dict)


class Template(Lenient):
    """A pod template; its ``spec`` goes into the pods as it is."""

    metadata: TemplateMetadata = TemplateMetadata()
    spec: dict[str, Any]


class DeploymentSpec(Lenient):
    """``spec`` of a Deployment, as far as pods are made from it."""

    replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    template: Template


class Deployment(Object):
    """A Deployment."""

    spec: DeploymentSpec


def pods_of(document: Document, deployment: Deployment) -> Iterator[dict[str, Any]]:
    """Pod objects without node and address. The same Deployment always gives the same names."""
    template = deployment.spec.template
    template_hash = _name_from(json.dumps(template.model_dump(), sort_keys=True), 10)
    replica_set = f"{document.name}-{template_hash}"
    annotations = template.metadata.annotations
    for number in range(deployment.spec.replicas):
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{replica_set}-{_name_from(f'{replica_set}/{number}', 5)}",
                "namespace": document.namespace,
                "labels": {**template.metadata.labels, "pod-template-hash": template_hash},
                **({"annotations": dict(annotations)} if annotations else {}),
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "controller": True}
                ],
            },
            "spec": copy.deepcopy(template.spec),
        }


def _name_from(text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "".join(NAME_ALPHABET[byte % len(NAME_ALPHABET)] for byte in digest[:length])
