"""One description of a mesh, made from Kubernetes documents: which pods run where and what they do.

1. Deployments become pods. 2. A pod with an echo server in it is a server, every other pod is a client from
which the lab dials. 3. Servers are spread over the nodes from the last, clients from the first, so that a call
usually crosses from one node to another. 4. Pods get addresses, services virtual IPs, of both families where the
fabric has both, namespaces the label of ambient mode. Everything that a document states itself stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeAlias

from ztun.agent.annotations import NETNS
from ztun.errors import ConfigError
from ztun.lab.addresses import AddressPlan, hosts
from ztun.lab.deployment import Deployment, pods_of
from ztun.mesh.document import Document
from ztun.mesh.model import canonical_ip
from ztun.resources.documents import validate
from ztun.resources.schema import DATAPLANE_MODE, INJECT, SIDECAR_STATUS

ECHO_IMAGE = "istio/tcp-echo-server"
RESERVED = ("wire", "outside")  # names of machines that are neither nodes nor pods

Mode: TypeAlias = Literal["ambient", "sidecar", "none"]


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo server container: its ports and the word in front of its answers."""

    ports: tuple[int, ...]
    say: str


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A machine of the mesh, or what stands for one."""

    name: str
    ip: str


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod; ``owner`` is the name of its Deployment, or its own when it has none."""

    namespace: str
    name: str
    owner: str
    node: str
    ip: str
    service_account: str
    echoes: tuple[Echo, ...] = ()
    ip6: str = ""
    netns: str = ""
    """The name of its network namespace, where it has one."""
    mode: Mode = "ambient"
    """Whose proxy it has: its node's, one of its own, or none."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All of its addresses, IPv4 first."""
        return tuple(filter(None, (self.ip, self.ip6)))

    @property
    def label(self) -> str:
        """``namespace/owner``, as people speak of it."""
        return f"{self.namespace}/{self.owner}"


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A service with the virtual IP that clients would resolve its name to (empty when it has none)."""

    namespace: str
    name: str
    vip: str
    ports: tuple[int, ...]
    vip6: str = ""

    @property
    def hostname(self) -> str:
        """Its full name in the cluster."""
        return f"{self.name}.{self.namespace}.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """The whole mesh; ``objects`` are the documents that the proxies read, in order."""

    nodes: tuple[NodePlan, ...]
    pods: tuple[PodPlan, ...]
    services: tuple[ServicePlan, ...]
    objects: tuple[Mapping[str, Any], ...] = field(repr=False)

    @property
    def clients(self) -> tuple[PodPlan, ...]:
        """Pods without a server."""
        return tuple(pod for pod in self.pods if not pod.echoes)

    @property
    def servers(self) -> tuple[PodPlan, ...]:
        """Pods with an echo server."""
        return tuple(pod for pod in self.pods if pod.echoes)

    def pods_on(self, node: str) -> tuple[PodPlan, ...]:
        """The pods of a node."""
        return tuple(pod for pod in self.pods if pod.node == node)

    def pod(self, namespace: str, owner: str) -> PodPlan:
        """The first pod of a Deployment; raises ``KeyError`` when there is none."""
        for pod in self.pods:
            if (pod.namespace, pod.owner) == (namespace, owner):
                return pod
        raise KeyError(f"{namespace}/{owner}")

    def service(self, namespace: str, name: str) -> ServicePlan:
        """A service by its name; raises ``KeyError`` when there is none."""
        for service in self.services:
            if (service.namespace, service.name) == (namespace, name):
                return service
        raise KeyError(f"{namespace}/{name}")


def plan_mesh(documents: Iterable[Document], addresses: AddressPlan) -> MeshPlan:
    """Lay out a mesh. Raises :class:`ConfigError` with the place of what cannot be used."""
    objects = list(_expanded(documents))
    return _Layout(addresses).plan(objects)


def _expanded(documents: Iterable[Document]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document.kind != "Deployment":
            one = copy.deepcopy(document.data)
            if document.namespace:
                one["metadata"]["namespace"] = document.namespace
            yield one
            continue
        deployment, problems = validate(Deployment, document)
        if deployment is None:
            raise ConfigError("lab_document", str(problems[0]))
        yield from pods_of(document, deployment)


class _Layout:
    def __init__(self, addresses: AddressPlan) -> None:
        self._nodes = tuple(NodePlan(name, ip) for name, ip in addresses.nodes.items())
        self._pod_ips = {node: hosts(network) for node, network in addresses.pods.items()}
        self._pod_ips6 = {node: hosts(network) for node, network in addresses.pods6.items()}
        self._vips = hosts(addresses.services)
        self._vips6 = hosts(addresses.services6) if addresses.services6 is not None else None
        self._taken: set[str] = set()
        self._netns, self._netns_taken = addresses.netns, {f"{addresses.netns}-{one}" for one in RESERVED}
        self._netns_taken |= {f"{addresses.netns}-{node}" for node in addresses.nodes}
        self._servers = self._clients = 0

    def plan(self, objects: Sequence[dict[str, Any]]) -> MeshPlan:
        for one in objects:
            self._taken.update(_stated_addresses(one))
        pods, services = [], []
        for one in objects:
            if one["kind"] == "Pod" and one["apiVersion"] == "v1":
                pods.append(self._pod(one))
            elif one["kind"] == "Service" and one["apiVersion"] == "v1":
                services.append(self._service(one))
        return MeshPlan(self._nodes, tuple(pods), tuple(services), (*_namespaces(objects), *objects))

    def _pod(self, pod: dict[str, Any]) -> PodPlan:
        metadata, spec = pod["metadata"], pod.setdefault("spec", {})
        echoes = tuple(_echoes(spec.get("containers") or []))
        node = spec["nodeName"] = spec.get("nodeName") or self._next_node(server=bool(echoes))
        if node not in self._pod_ips:
            names = ", ".join(self._pod_ips)
            label = f"Pod {metadata['namespace']}/{metadata['name']}"
            raise ConfigError("lab_node", f"{label}: no node {node!r}", hint=f"nodes: {names}")
        status = pod.setdefault("status", {})
        ip, ip6 = status.get("podIP"), ""
        if not ip:
            ip = self._free(self._pod_ips[node])
            ip6 = self._free(self._pod_ips6[node]) if node in self._pod_ips6 else ""
        status.update(
            {
                "phase": "Running",
                "podIP": ip,
                "podIPs": status.get("podIPs") or [{"ip": one} for one in (ip, ip6) if one],
                "conditions": [{"type": "Ready", "status": "True"}],
            }
        )
        owners = metadata.get("ownerReferences") or [{"name": metadata["name"]}]
        labels = metadata.get("labels") or {}
        owner = owners[0]["name"].removesuffix(f"-{labels.get('pod-template-hash', '')}")
        mode = _mode(labels)
        annotations = metadata.get("annotations") or {}
        if mode == "sidecar":
            annotations.setdefault(SIDECAR_STATUS, "{}")  # as the injector leaves it
        netns = self._free_netns(owner) if self._netns else ""
        if netns:
            annotations[NETNS] = netns
        if annotations:
            metadata["annotations"] = annotations
        return PodPlan(
            namespace=metadata["namespace"],
            name=metadata["name"],
            owner=owner,
            node=node,
            ip=ip,
            service_account=spec.setdefault("serviceAccountName", "default"),
            echoes=echoes,
            ip6=ip6,
            netns=netns,
            mode=mode,
        )

    def _service(self, service: dict[str, Any]) -> ServicePlan:
        metadata, spec = service["metadata"], service["spec"]
        vip, vip6 = spec.get("clusterIP") or "", ""
        if not vip and spec.get("type") != "ExternalName":
            vip = self._free(self._vips)
            spec.update({"clusterIP": vip, "clusterIPs": [vip]})
            if self._vips6 is not None:
                vip6 = self._free(self._vips6)
                spec["clusterIPs"].append(vip6)
                spec.update({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]})
        tcp = [port for port in spec.get("ports") or [] if port.get("protocol", "TCP") == "TCP"]
        return ServicePlan(
            metadata["namespace"],
            metadata["name"],
            "" if vip == "None" else vip,
            tuple(port["port"] for port in tcp),
            vip6,
        )

    def _next_node(self, *, server: bool) -> str:
        if server:
            self._servers += 1
            return self._nodes[-(self._servers % len(self._nodes) or len(self._nodes))].name
        self._clients += 1
        return self._nodes[(self._clients - 1) % len(self._nodes)].name

    def _free_netns(self, owner: str) -> str:
        names = (f"{self._netns}-{owner}{f'-{number}' if number > 1 else ''}" for number in count(1))
        name = next(name for name in names if name not in self._netns_taken)
        self._netns_taken.add(name)
        return name

    def _free(self, candidates: Iterator[str]) -> str:
        return next(ip for ip in candidates if ip not in self._taken)


def _mode(labels: Mapping[str, str]) -> Mode:
    if labels.get(INJECT) == "true":
        return "sidecar"
    return "none" if labels.get(DATAPLANE_MODE) == "none" else "ambient"


def _echoes(containers: Iterable[Mapping[str, Any]]) -> Iterator[Echo]:
    for container in containers:
        image = str(container.get("image", ""))
        if image.partition(":")[0].removeprefix("docker.io/") != ECHO_IMAGE:
            continue
        arguments = [str(argument) for argument in container.get("args") or []]
        try:
            ports, say = arguments
            yield Echo(tuple(int(port) for port in ports.split(",")), say)
        except ValueError:
            raise ConfigError(
                "lab_echo",
                f"container {container.get('name', '')!r} of image {image}: arguments {arguments}",
                hint='expected the ports and a word, for example args: ["9000", "hello"]',
            ) from None


def _stated_addresses(one: Mapping[str, Any]) -> Iterator[str]:
    for part, key in (("status", "podIP"), ("spec", "clusterIP")):
        stated = (one.get(part) or {}).get(key)
        if stated and stated != "None":
            yield canonical_ip(stated)


def _namespaces(objects: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A Namespace in ambient mode for every namespace that is used and has no document of its own."""
    stated = {one["metadata"]["name"] for one in objects if one["kind"] == "Namespace"}
    used = dict.fromkeys(one["metadata"].get("namespace") for one in objects)
    for name in used:
        if name and name not in stated:
            labels = {DATAPLANE_MODE: "ambient", "kubernetes.io/metadata.name": name}
            yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
