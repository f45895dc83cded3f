"""What one Pod document asks of the agent, by the labels and annotations of Istio and one of our own; pure."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from ztun.agent.enrolments import Enrolment, PodIdentity
from ztun.agent.places import namespace_path
from ztun.agent.rules import CaptureOptions
from ztun.errors import ConfigError
from ztun.mesh.document import Document, Problem
from ztun.resources.documents import validate
from ztun.resources.kubernetes import Pod
from ztun.resources.schema import DATAPLANE_MODE, GATEWAY_NAME_LABELS, REDIRECTION, Metadata
from ztun.resources.workloads import NO_METADATA, is_ambient, is_sidecar

NETNS = "ztun.io/netns"
"""Annotation: name or path of the pod's network namespace; without it the one named as the pod."""
DNS_CAPTURE = "ambient.istio.io/dns-capture"
BYPASS_INBOUND = "ambient.istio.io/bypass-inbound-capture"
VIRTUAL_INTERFACES = "istio.io/reroute-virtual-interfaces"

_NAMESPACE_OF_UIDS = uuid.UUID(
    "6d1d2c52-6a0e-4a52-9a7c-7f5d0a7e6f11"
)  # drawn once, for uids that are derived
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def derived_uid(namespace: str, name: str) -> str:
    """The uid of a pod whose document has none: the same each time."""
    return str(uuid.uuid5(_NAMESPACE_OF_UIDS, f"{namespace}/{name}"))


def stays_out(pod: Pod, namespace: Metadata | None) -> bool:
    """Whether a pod is none of the node proxy's.

    It has ended, has the node's own network, is a gateway, has a proxy of its own or says so; or the document of its
    ``namespace`` is there and neither of the two asks for ambient mode. Source: Istio's PodRedirectionEnabled.
    """
    label = pod.metadata.label
    return (
        bool(pod.spec.host_network)
        or pod.status.phase in ("Succeeded", "Failed")
        or label(DATAPLANE_MODE) == "none"
        or pod.metadata.annotation(REDIRECTION) == "disabled"
        or is_sidecar(pod, namespace or NO_METADATA)
        or (any(map(label, GATEWAY_NAME_LABELS)) and label(DATAPLANE_MODE) != "ambient")
        or (namespace is not None and not is_ambient(pod, namespace))
    )


def enrolment_of(
    document: Document, namespace: Metadata | None = None, *, node: str = "", dns: bool = True
) -> tuple[Enrolment | None, list[Problem]]:
    """What a Pod document asks for; None when its pod stays out of the mesh, or is not one of ``node``'s.

    ``namespace`` is what its Namespace document says, if there is one; without ``dns`` no pod has DNS capture.
    """
    pod, problems = validate(Pod, document)
    if pod is None:
        return None, problems
    if (node and pod.spec.node_name and pod.spec.node_name != node) or stays_out(pod, namespace):
        return None, []
    uid = document.data["metadata"].get("uid")
    if uid is not None and not (isinstance(uid, str) and _UID.fullmatch(uid)):
        hint = "letters, digits, '-', '.' and '_', at most 128"
        return None, [document.problem(("metadata", "uid"), f"{uid!r} is not a uid", hint=hint)]
    place = NETNS
    try:
        netns = _netns(pod, document.name)
        place = VIRTUAL_INTERFACES
        options = _options(pod, dns)
    except ConfigError as error:
        where = ("metadata", "annotations", place)
        return None, [document.problem(where, str(error), hint=error.hint)]
    return Enrolment(
        pod=PodIdentity(
            uid=uid or derived_uid(document.namespace, document.name),
            name=document.name,
            namespace=document.namespace,
            service_account=pod.spec.service_account_name or "default",
        ),
        netns=netns,
        origin="document",
        options=options,
    ), []


def _netns(pod: Pod, name: str) -> Path:
    return namespace_path(pod.metadata.annotation(NETNS) or name)


def _options(pod: Pod, dns: bool) -> CaptureOptions:
    annotation = pod.metadata.annotation
    interfaces = (name.strip() for name in annotation(VIRTUAL_INTERFACES).split(","))
    return CaptureOptions(
        dns=dns and annotation(DNS_CAPTURE) != "false",
        inbound=annotation(BYPASS_INBOUND) != "true",
        virtual_interfaces=tuple(name for name in interfaces if name),
    )
