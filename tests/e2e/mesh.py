"""The documents of the mesh that the containers form. ``block`` is the /16 that the run was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NODES = ("node-a", "node-b", "node-c")
SERVICE_PORT, APP_PORT = 19000, 9000
WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who is where in 10.``block``.0.0/16."""

    block: int

    @property
    def subnet(self) -> str:
        return f"10.{self.block}.0.0/16"

    @property
    def reserve(self) -> str:
        """What the daemon may give to whoever asks for no address."""
        return f"10.{self.block}.255.0/24"

    @property
    def gateway(self) -> str:
        return f"10.{self.block}.0.1"

    @property
    def ca(self) -> str:
        return f"10.{self.block}.0.2"

    @property
    def waypoint(self) -> str:
        return f"10.{self.block}.0.20"

    def node(self, name: str) -> str:
        return f"10.{self.block}.0.{11 + NODES.index(name)}"

    def pods(self, node: str) -> str:
        return f"10.{self.block}.{1 + NODES.index(node)}.0/24"

    def pod(self, node: str, number: int) -> str:
        return f"10.{self.block}.{1 + NODES.index(node)}.{10 + number}"


def documents(addresses: Addresses) -> Iterator[Mapping[str, Any]]:
    """A client and an echo server on each of two nodes, one client on the third; three services.

    ``echo`` has both servers, ``echo-b`` the one on node-b, ``guided`` the same one behind the waypoint.
    """
    for name in ("default", "istio-system"):
        labels = {"istio.io/dataplane-mode": "ambient"} if name == "default" else {}
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    for node in NODES:
        letter = node[-1]
        yield pod(f"client-{letter}", node, addresses.pod(node, 0))
    for node in NODES[:2]:
        letter = node[-1]
        yield pod(
            f"echo-{letter}", node, addresses.pod(node, 1), app="echo", letter=letter, say=f"from-{letter}"
        )
    yield service("echo", 10, {"app": "echo"})
    yield service("echo-a", 11, {"letter": "a"})
    yield service("echo-b", 12, {"letter": "b"})
    yield service("guided", 13, {"letter": "b"}, use_waypoint=WAYPOINT)
    yield {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": WAYPOINT,
            "namespace": "default",
            "labels": {"istio.io/waypoint-for": "service"},
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    name = "gateway.networking.k8s.io/gateway-name"
    yield pod(WAYPOINT, "elsewhere", addresses.waypoint, account=WAYPOINT, **{name: WAYPOINT})


def pod(
    name: str, node: str, ip: str, *, account: str = "default", say: str = "", **labels: str
) -> Mapping[str, Any]:
    containers: Sequence[Mapping[str, Any]] = ()
    if say:
        image = "istio/tcp-echo-server:1.2"
        containers = [{"name": "server", "image": image, "args": [str(APP_PORT), say]}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": list(containers)},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service(
    name: str, number: int, selector: Mapping[str, str], *, use_waypoint: str = ""
) -> Mapping[str, Any]:
    labels = {"istio.io/use-waypoint": use_waypoint} if use_waypoint else {}
    vip = f"192.168.58.{number}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {
            "clusterIP": vip,
            "clusterIPs": [vip],
            "selector": dict(selector),
            "ports": [{"name": "tcp", "port": SERVICE_PORT, "targetPort": APP_PORT, "protocol": "TCP"}],
        },
    }
