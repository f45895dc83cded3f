"""Meshes by the thousand: objects that exist but do not concern the connection that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tests.bench.documents import Document, Documents

NAMESPACES = 100
WORKLOADS_PER_SERVICE = 10


def namespaces() -> Iterator[Document]:
    """The ambient namespaces that everything else lives in."""
    for number in range(NAMESPACES):
        labels = {"istio.io/dataplane-mode": "ambient"}
        yield {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": _namespace(number), "labels": labels},
        }


def workloads(count: int, version: str = "v1") -> Iterator[Document]:
    """Pods of other nodes, ten behind each service; ``version`` is a label of all of them."""
    for number in range(count):
        group = number // WORKLOADS_PER_SERVICE
        ip = _address(10, number)
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"pod-{number}",
                "namespace": _namespace(group),
                "labels": {"app": f"app-{group}", "version": version},
            },
            "spec": {
                "nodeName": f"node-{number % NAMESPACES}",
                "serviceAccountName": f"app-{group}",
                "containers": [{"name": "main", "ports": [{"name": "tcp", "containerPort": 8080}]}],
            },
            "status": {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }


def services(count: int, version: str = "v1") -> Iterator[Document]:
    """Services with a virtual address each, which select the workloads of their number."""
    for number in range(count):
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": f"app-{number}",
                "namespace": _namespace(number),
                "labels": {"version": version},
            },
            "spec": {
                "clusterIP": _address(172, number),
                "selector": {"app": f"app-{number}"},
                "ports": [{"name": "tcp", "port": 80, "targetPort": 8080}],
            },
        }


def policies(count: int, version: str = "v1") -> Iterator[Document]:
    """Policies for one workload each, in the namespace of the measured server: to look at each would show."""
    for number in range(count):
        principals = [f"cluster.local/ns/{version}/sa/app-{number}", "cluster.local/ns/default/sa/nobody"]
        rule = {
            "from": [{"source": {"principals": principals}}],
            "to": [{"operation": {"ports": ["8080"]}}],
        }
        yield {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": f"app-{number}", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": f"app-{number}"}},
                "action": "ALLOW",
                "rules": [rule],
            },
        }


def virtual_services(count: int, version: str = "v1") -> Iterator[Document]:
    """Rules of two blocks for hosts of their own, each with two weighted destinations."""
    for number in range(count):
        host, other = (f"app-{at}.{_namespace(at)}.svc.cluster.local" for at in (number, number + 1))
        weighted = [
            {"destination": {"host": host}, "weight": 80},
            {"destination": {"host": other}, "weight": 20},
        ]
        yield {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {
                "name": f"app-{number}",
                "namespace": _namespace(number),
                "labels": {"version": version},
            },
            "spec": {
                "hosts": [host],
                "tcp": [
                    {"match": [{"gateways": ["mesh"]}], "route": weighted},
                    {"route": [{"destination": {"host": other}}]},
                ],
            },
        }


KINDS: Mapping[str, Callable[[int], Iterator[Document]]] = {
    "services": services,
    "workloads": workloads,
    "policies": policies,
    "VirtualServices": virtual_services,
}
"""What a decision could depend on the number of, by the name that the plot has for it."""


def mesh(count: int, version: str = "v1") -> Documents:
    """``count`` workloads, and a tenth as many services and policies."""
    tenth = max(1, count // 10)
    return [*namespaces(), *workloads(count, version), *services(tenth, version), *policies(tenth, version)]


def _namespace(number: int) -> str:
    return f"team-{number % NAMESPACES}"


def _address(first: int, number: int) -> str:
    return f"{first}.{16 + number // 65536}.{number // 256 % 256}.{number % 256}"
