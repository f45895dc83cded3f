"""Pods and WorkloadEntries to workloads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ztun.mesh.address import is_hostname
from ztun.mesh.document import Document
from ztun.mesh.model import Health, Locality, TunnelProtocol, Workload, WorkloadType, canonical_ip
from ztun.resources.drafts import WorkloadDraft
from ztun.resources.entries import EntryFields, WorkloadEntry
from ztun.resources.kubernetes import Pod
from ztun.resources.schema import (
    DATAPLANE_MODE,
    INJECT,
    INJECTION,
    NETWORK,
    REDIRECTION,
    SIDECAR_STATUS,
    TUNNEL,
    Metadata,
)
from ztun.resources.settings import MeshSettings
from ztun.resources.waypoints import Waypoints

REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
SUBZONES = ("topology.istio.io/subzone", "istio.io/subzone")
NO_METADATA = Metadata()

_REPLICA_SET = re.compile(r"-[a-z0-9]{5,10}\Z")
_CRON_JOB = re.compile(r"-[0-9]{8,10}\Z")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a workload takes from outside its own document."""

    settings: MeshSettings
    waypoints: Waypoints
    namespaces: Mapping[str, tuple[Document, Metadata]]
    nodes: Mapping[str, Metadata]

    def namespace(self, name: str) -> Metadata:
        """Labels of a namespace; none if there is no document for it."""
        found = self.namespaces.get(name)
        return found[1] if found is not None else NO_METADATA


def pod_workload(document: Document, pod: Pod, around: Surroundings) -> WorkloadDraft | None:
    """The workload of a pod; None when it has ended."""
    if pod.status.phase in ("Succeeded", "Failed"):
        return None
    metadata, settings = pod.metadata, around.settings
    namespace = around.namespace(document.namespace)
    waypoint = around.waypoints.instance_of(document.namespace, metadata)
    host_network = bool(pod.spec.host_network)
    sidecar = waypoint is None and is_sidecar(pod, namespace)
    tunnelled = waypoint is not None or sidecar or is_ambient(pod, namespace)
    workload_type, workload_name = owner_of(document.name, metadata)
    addresses = dict.fromkeys(ip.ip for ip in pod.status.pod_ips or [] if ip.ip)
    if pod.status.pod_ip:
        addresses = {pod.status.pod_ip: None} | addresses
    return WorkloadDraft(
        Workload(
            uid=f"{settings.cluster_id}//Pod/{document.namespace}/{document.name}",
            name=document.name,
            namespace=document.namespace,
            addresses=tuple(addresses),
            service_account=pod.spec.service_account_name or "default",
            trust_domain=settings.trust_domain,
            network=metadata.label(NETWORK) or namespace.label(NETWORK) or settings.network,
            node=pod.spec.node_name or "",
            tunnel_protocol=TunnelProtocol.HBONE if tunnelled else TunnelProtocol.NONE,
            labels=MappingProxyType(metadata.labels or {}),
            # A waypoint does not stand in front of itself.
            waypoint=around.waypoints.of(document, metadata, "workload") if waypoint is None else None,
            application_tunnel=waypoint.tunnel if waypoint is not None else None,
            native_tunnel=sidecar or (waypoint is not None and waypoint.tunnel is None),
            host_network=host_network,
            canonical_name=canonical_name(metadata, workload_name),
            canonical_revision=canonical_revision(metadata),
            workload_name=workload_name,
            workload_type=workload_type,
            cluster_id=settings.cluster_id,
            locality=locality_of(metadata, around.nodes.get(pod.spec.node_name or "", NO_METADATA)),
            health=Health.HEALTHY if is_ready(pod) else Health.UNHEALTHY,
            sidecar=sidecar,
        ),
        {
            port.name: port.container_port
            for container in (pod.spec.containers or []) + (pod.spec.init_containers or [])
            for port in container.ports or []
            if port.name and port.protocol in (None, "TCP")
        },
    )


def is_sidecar(pod: Pod, namespace: Metadata) -> bool:
    """Whether a pod has (or would be given) a proxy of its own."""
    metadata = pod.metadata
    containers = (pod.spec.containers or []) + (pod.spec.init_containers or [])
    if metadata.annotation(SIDECAR_STATUS) or any(one.name == "istio-proxy" for one in containers):
        return True
    inject = metadata.label(INJECT) or metadata.annotation(INJECT)
    if inject == "false" or pod.spec.host_network:
        return False
    if inject == "true":
        return True
    # A pod that asks for ambient mode says so more precisely than its namespace.
    return namespace.label(INJECTION) == "enabled" and metadata.label(DATAPLANE_MODE) != "ambient"


def is_ambient(pod: Pod, namespace: Metadata) -> bool:
    """Whether the node's proxy takes a pod's traffic; the pod's label counts before its namespace's."""
    if pod.spec.host_network:
        return False
    if pod.metadata.annotation(REDIRECTION) == "enabled":
        return True
    return (pod.metadata.label(DATAPLANE_MODE) or namespace.label(DATAPLANE_MODE)) == "ambient"


def is_ready(pod: Pod) -> bool:
    """Ready unless a condition says otherwise or the pod is being deleted."""
    if pod.metadata.deletion_timestamp:
        return False
    ready = [one.status for one in pod.status.conditions or [] if one.type == "Ready"]
    return not ready or ready[0] == "True"


def owner_of(name: str, metadata: Metadata) -> tuple[WorkloadType, str]:
    """Type and name of what made the pod, as telemetry shows it."""
    controllers = [one for one in metadata.owner_references or [] if one.controller is not False]
    if not controllers:
        return WorkloadType.POD, metadata.label("service.istio.io/workload-name") or name
    owner = controllers[0]
    if owner.kind == "ReplicaSet":
        template_hash = metadata.label("pod-template-hash")
        if template_hash and owner.name.endswith(f"-{template_hash}"):
            return WorkloadType.DEPLOYMENT, owner.name.removesuffix(f"-{template_hash}")
        return WorkloadType.DEPLOYMENT, _REPLICA_SET.sub("", owner.name)
    if owner.kind == "Job":
        if _CRON_JOB.search(owner.name):
            return WorkloadType.CRONJOB, _CRON_JOB.sub("", owner.name)
        return WorkloadType.JOB, owner.name
    return WorkloadType.POD, owner.name


def canonical_name(metadata: Metadata, workload_name: str) -> str:
    """Istio's canonical service name."""
    return (
        metadata.label("service.istio.io/canonical-name")
        or metadata.label("app.kubernetes.io/name")
        or metadata.label("app")
        or workload_name
    )


def canonical_revision(metadata: Metadata) -> str:
    """Istio's canonical revision."""
    return (
        metadata.label("service.istio.io/canonical-revision")
        or metadata.label("app.kubernetes.io/version")
        or metadata.label("version")
        or "latest"
    )


def locality_of(metadata: Metadata, node: Metadata) -> Locality:
    """Where a pod runs: what its node says, else what its own labels say."""
    source = node if node.label(REGION) or node.label(ZONE) else metadata
    subzone = next((value for key in SUBZONES if (value := source.label(key))), "")
    return Locality(source.label(REGION), source.label(ZONE), subzone)


def entry_workload(document: Document, entry: WorkloadEntry, around: Surroundings) -> WorkloadDraft:
    """The workload of a WorkloadEntry."""
    uid = (
        f"{around.settings.cluster_id}/networking.istio.io/WorkloadEntry/{document.namespace}/{document.name}"
    )
    return entry_draft(document, entry.spec, entry.metadata, uid, around)


def entry_draft(
    document: Document, entry: EntryFields, metadata: Metadata, uid: str, around: Surroundings
) -> WorkloadDraft:
    """A workload from the fields that WorkloadEntries and endpoints of ServiceEntries share."""
    settings = around.settings
    labels = dict(metadata.labels or {}) | entry.labels
    merged = Metadata(labels=labels, annotations=metadata.annotations)
    addresses, hostname = split_address(entry.address)
    native = "http" in merged.label(TUNNEL).split(",")
    captured = merged.annotation(REDIRECTION) == "enabled" or merged.label(DATAPLANE_MODE) == "ambient"
    return WorkloadDraft(
        Workload(
            uid=uid,
            name=document.name,
            namespace=document.namespace,
            addresses=addresses,
            service_account=entry.service_account or "default",
            trust_domain=settings.trust_domain,
            network=entry.network or merged.label(NETWORK) or settings.network,
            tunnel_protocol=TunnelProtocol.HBONE if native or captured else TunnelProtocol.NONE,
            labels=MappingProxyType(labels),
            waypoint=around.waypoints.of(document, merged, "workload"),
            native_tunnel=native,
            hostname=hostname,
            canonical_name=canonical_name(merged, document.name),
            canonical_revision=canonical_revision(merged),
            workload_name=document.name,
            cluster_id=settings.cluster_id,
            locality=Locality(*[*entry.locality.split("/"), "", "", ""][:3]),
            capacity=entry.weight or 1,
        ),
        entry.ports,
    )


def split_address(address: str) -> tuple[tuple[str, ...], str]:
    """(addresses, hostname) of an entry's ``address``, which is one or the other or empty."""
    try:
        return (canonical_ip(address),), ""
    except ValueError:
        return (), address.lower() if is_hostname(address) else ""


def outside_workload(
    document: Document,
    uid: str,
    around: Surroundings,
    *,
    addresses: tuple[str, ...] = (),
    hostname: str = "",
    health: Health = Health.HEALTHY,
    node: str = "",
) -> Workload:
    """An endpoint that is no pod: no labels, no tunnel."""
    return Workload(
        uid=uid,
        name=document.name,
        namespace=document.namespace,
        addresses=addresses,
        trust_domain=around.settings.trust_domain,
        network=around.settings.network,
        node=node,
        tunnel_protocol=TunnelProtocol.NONE,
        hostname=hostname,
        workload_name=document.name,
        cluster_id=around.settings.cluster_id,
        health=health,
    )
