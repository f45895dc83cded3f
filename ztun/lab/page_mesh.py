"""The mesh that the examples of routing are tried in: the same clients twice, once for either mode.

A client with a sidecar routes by itself, one without is routed by the waypoint of the service. Either mode has two
gateways of its own. Both modes see the same configuration at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from ztun.errors import ConfigError
from ztun.lab.fabric import NODES, Fabric
from ztun.lab.programs import Companion
from ztun.lab.topology import MeshPlan, plan_mesh
from ztun.resources.documents import parse_documents
from ztun.resources.schema import DATAPLANE_MODE

MODES = ("sidecar", "ambient")
CLIENTS = (("default", "telnet-client"), ("default", "telnet-client-2"), ("foo", "telnet-client-foo"))
GATEWAYS = ("ingressgateway-1", "ingressgateway-2")
GATEWAY_NAMESPACE = "istio-system"
CANARY = "echo-server-gray"
WAYPOINT = "waypoint"
Documents = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class PageMesh:
    """The plan, and the proxies besides those of the nodes."""

    plan: MeshPlan
    companions: tuple[Companion, ...]

    def objects(self, *, canary: bool) -> Documents:
        """The documents of the mesh, with or without the canary version of the echo server."""
        pod = self.plan.pod("default", CANARY).name
        return [one for one in self.plan.objects if canary or one["metadata"]["name"] != pod]


def example(*names: str) -> list[dict[str, Any]]:
    """The documents of files of the examples: ``manifests/port`` corrected, ``printed/port`` as printed."""
    return [document for name in names for document in yaml.safe_load_all(text_of(name))]


def text_of(name: str) -> str:
    """The text of one file of the examples."""
    directory, _, file = name.partition("/")
    return resources.files("ztun.lab").joinpath(directory, f"{file}.yaml").read_text()


def name_in(mode: str, name: str) -> str:
    """What a Deployment is called in a mode."""
    return f"{name}-sidecar" if mode == "sidecar" else name


def plan_page(fabric: Fabric) -> PageMesh:
    """Lay the mesh out on a fabric of two nodes."""
    text = yaml.safe_dump_all(_documents(), sort_keys=False)
    documents, problems = parse_documents(text, file="examples.yaml")
    if problems:
        raise ConfigError("lab_document", str(problems[0]))
    # The rule on destinationSubnets is about IPv4: clients must not find another address of the service.
    plan = plan_mesh(documents, replace(fabric.addresses, services6=None))
    return PageMesh(plan, tuple(_companions(plan)))


def _documents() -> Iterable[Mapping[str, Any]]:
    near, far = NODES
    for one in example("manifests/echoserver", "manifests/echo-server-backup", "manifests/echo-split"):
        if one["kind"] == "Service":
            one["metadata"]["labels"] = {
                **one["metadata"].get("labels", {}),
                "istio.io/use-waypoint": WAYPOINT,
            }
        if one["kind"] == "Deployment":
            one["spec"]["template"]["spec"]["nodeName"] = far
        if one["kind"] != "VirtualService":
            yield one
    for one in example("manifests/telnet"):
        yield _placed(one, near)
        injected = copy.deepcopy(one)
        injected["metadata"]["name"] = name_in("sidecar", one["metadata"]["name"])
        injected["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] = "true"
        yield _placed(injected, near)
    yield from example("manifests/waypoint")
    yield _proxy("default", WAYPOINT, {"gateway.networking.k8s.io/gateway-name": WAYPOINT})
    for gateway in GATEWAYS:
        for mode in MODES:
            yield _proxy(GATEWAY_NAMESPACE, name_in(mode, gateway), {"istio": gateway})


def _placed(deployment: dict[str, Any], node: str) -> dict[str, Any]:
    deployment["spec"]["template"]["spec"]["nodeName"] = node
    return deployment


def _proxy(namespace: str, name: str, labels: Mapping[str, str]) -> Mapping[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "template": {
                "metadata": {"labels": {DATAPLANE_MODE: "none", **labels}},
                "spec": {"serviceAccountName": name, "nodeName": NODES[-1], "containers": []},
            }
        },
    }


def _companions(plan: MeshPlan) -> Iterable[Companion]:
    for namespace, client in CLIENTS:
        name = name_in("sidecar", client)
        pod = plan.pod(namespace, name)
        command = ("ztun", "proxy", "--node", pod.node, "--mode", "sidecar", "--engine", "sidecar")
        yield Companion(name, (*command, "--workload", f"{namespace}/{pod.name}"), pod, dedicated=True)
    run = ("waypoint", "run", "--name", WAYPOINT, "--namespace", "default", "--engine", "ambient")
    yield Companion(WAYPOINT, run, plan.pod("default", WAYPOINT))
    for gateway in GATEWAYS:
        for mode in MODES:
            pod = plan.pod(GATEWAY_NAMESPACE, name_in(mode, gateway))
            where = ("--name", pod.name, "--namespace", GATEWAY_NAMESPACE, "--engine", mode)
            yield Companion(name_in(mode, gateway), ("waypoint", "gateway", *where), pod)
