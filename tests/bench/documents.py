"""The configuration of the compared ztun proxies, as Kubernetes documents, and thousands of documents as one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId

ECHO_PORT = 9000
HTTP_PORT = 8080
HBONE_PORT = 15008
PORTS = {"echo": ECHO_PORT, "http": HTTP_PORT}
VIP = "192.168.58.10"
CLIENT = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "client")
SERVER = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "server")
WAYPOINT = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "waypoint")
Document = Mapping[str, Any]
Documents = Sequence[Document]


def server_service(*, waypoint: bool) -> Document:
    """The service in front of the server's pod, with the virtual address ``VIP``."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "server",
            "namespace": "default",
            "labels": {"istio.io/use-waypoint": "waypoint"} if waypoint else {},
        },
        "spec": {
            "clusterIP": VIP,
            "selector": {"app": "server"},
            "ports": [{"name": f"tcp-{name}", "port": port} for name, port in PORTS.items()],
        },
    }


def server_policy(client: SpiffeId) -> Document:
    """Only ``client`` may connect to the server's pod: judged for each connection, as Envoy's RBAC filter does."""
    return allow("server-clients", client, selector={"matchLabels": {"app": "server"}})


def allow(name: str, client: SpiffeId, **scope: Any) -> Document:
    """An AuthorizationPolicy that allows one identity within a ``selector`` or for ``targetRefs``."""
    source = {"source": {"principals": [str(client).removeprefix("spiffe://")]}}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**scope, "action": "ALLOW", "rules": [{"from": [source]}]},
    }


def waypoint_documents() -> Documents:
    """The Gateway of the waypoint, who may use it, and a rule that it decides each connection by."""
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
    destination = {"destination": {"host": "server.default.svc.cluster.local"}}
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "waypoint", "namespace": "default"},
            "spec": {
                "gatewayClassName": "istio-waypoint",
                "listeners": [{"name": "mesh", "port": HBONE_PORT, "protocol": "HBONE"}],
            },
        },
        allow("waypoint-clients", CLIENT, targetRefs=[gateway]),
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "server", "namespace": "default"},
            "spec": {"hosts": ["server.default.svc.cluster.local"], "tcp": [{"route": [destination]}]},
        },
    ]


def as_text(documents: Documents) -> str:
    """A YAML stream, as ``kubectl`` users keep it in a file."""
    text: str = yaml.dump_all(documents, Dumper=yaml.CSafeDumper, sort_keys=False)
    return text


def write_documents(path: Path, documents: Documents) -> None:
    """All of them as one file, in one step so that a proxy never reads half of it."""
    replace_file(path, as_text(documents))


def replace_file(path: Path, text: str) -> None:
    """Write beside the directory that is watched, then rename."""
    draft = path.parent.parent / f"{path.parent.name}-{path.name}.draft"
    draft.write_text(text)
    draft.replace(path)
