"""From the YAML of the examples to a mesh with nodes, addresses and identities."""

from __future__ import annotations

import ipaddress

import pytest
import yaml

from ztun.errors import ConfigError
from ztun.lab.addresses import AddressPlan, hosts
from ztun.lab.demo import plan_mesh_of_examples
from ztun.lab.fabric import LoopbackFabric
from ztun.lab.topology import Echo, MeshPlan, plan_mesh
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit

FABRIC = LoopbackFabric(210)


def plan(text: str) -> MeshPlan:
    documents, problems = parse_documents(text, file="mesh.yaml")
    assert not problems
    return plan_mesh(documents, FABRIC.addresses)


def deployment(name: str, replicas: int = 1, container: str = "{image: busybox}", node: str = "") -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {f"nodeName: {node}" if node else "hostname: x"}
      containers: [{container}]
---"""


def test_the_examples_become_servers_and_clients_on_two_nodes() -> None:
    mesh = plan_mesh_of_examples(FABRIC)
    assert {(pod.label, pod.node) for pod in mesh.clients} == {
        ("default/telnet-client", "node-a"),
        ("default/telnet-client-2", "node-b"),
        ("foo/telnet-client-foo", "node-a"),
    }
    assert {(pod.label, pod.node, pod.echoes) for pod in mesh.servers} == {
        ("default/echo-server-prod", "node-b", (Echo((9000,), "hello"),)),
        ("default/echo-server-2", "node-a", (Echo((9000,), "hello-2"),)),
    }
    assert mesh.pod("default", "echo-server-prod").service_account == "echo-server"
    assert mesh.service("default", "echo-server").hostname == "echo-server.default.svc.cluster.local"
    assert ipaddress.ip_address(mesh.service("default", "echo-server").vip) in ipaddress.ip_network(
        "192.168.0.0/16"
    )


def test_the_proxies_read_the_plan_without_a_problem_and_find_everything_in_it() -> None:
    mesh = plan_mesh_of_examples(FABRIC)
    documents, problems = parse_documents(yaml.safe_dump_all(mesh.objects), file="mesh.yaml")
    snapshot = translate(documents, settings=MeshSettings()).snapshot
    assert not problems
    assert not [problem for problem in snapshot.problems if problem.severity == "error"]
    for pod in mesh.pods:
        workload = snapshot.workload_by_address("", pod.ip)
        assert workload is not None
        assert (workload.name, workload.node, workload.workload_name) == (pod.name, pod.node, pod.owner)
        assert workload.tunnel_protocol.value == "HBONE"
    endpoints = snapshot.endpoints(("default", "echo-server.default.svc.cluster.local"))
    assert [one.workload.workload_name for one in endpoints] == ["echo-server-prod"]
    assert endpoints[0].ports == {19000: 9000}


def test_replicas_have_names_of_their_own_that_stay_the_same() -> None:
    first, again = plan(deployment("web", replicas=3)), plan(deployment("web", replicas=3))
    names = [pod.name for pod in first.pods]
    assert len(set(names)) == 3
    assert names == [pod.name for pod in again.pods]
    assert {pod.owner for pod in first.pods} == {"web"}
    assert len({pod.ip for pod in first.pods}) == 3


def test_what_a_document_states_itself_stays() -> None:
    mesh = plan(
        """
apiVersion: v1
kind: Pod
metadata: {name: fixed, namespace: foo}
spec: {nodeName: node-b, serviceAccountName: special, containers: []}
status: {podIP: 127.210.1.10}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 192.168.58.10, ports: [{port: 80}, {port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: next}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio-injection: enabled}}
---"""
        + deployment("client")
    )
    fixed = mesh.pod("foo", "fixed")
    assert (fixed.node, fixed.ip, fixed.service_account) == ("node-b", "127.210.1.10", "special")
    assert mesh.pod("default", "client").ip == "127.210.1.11"
    vips = {service.name: (service.vip, service.ports) for service in mesh.services}
    assert vips == {
        "web": ("192.168.58.10", (80,)),
        "headless": ("", (80,)),
        "next": ("192.168.58.11", (80,)),
    }
    namespaces = [one["metadata"] for one in mesh.objects if one["kind"] == "Namespace"]
    assert [(one["name"], one["labels"].get("istio.io/dataplane-mode")) for one in namespaces] == [
        ("foo", "ambient"),
        ("default", None),
    ]


def test_each_client_has_a_way_in_to_every_service() -> None:
    mesh = plan_mesh_of_examples(FABRIC)
    entries = FABRIC.entries(mesh)
    assert len(entries) == len(mesh.clients) * len(mesh.services)
    assert len({(entry.ip, entry.port) for entry in entries}) == len(entries)
    client = mesh.pod("default", "telnet-client")
    first = next(entry for entry in entries if entry.client == client)
    assert first.forward == (
        f"{client.ip}:19000=echo-server.default.svc.cluster.local:19000@default/{client.name}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (deployment("web", replicas=51), "mesh.yaml:6:3 Deployment default/web spec.replicas"),
        (deployment("web", node="node-z"), "no node 'node-z'"),
        (
            deployment("web", container="{image: 'istio/tcp-echo-server:1.2', args: [hello]}"),
            "tcp-echo-server",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {}\n",
            "spec.template: required",
        ),
    ],
)
def test_a_document_that_cannot_be_laid_out_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r".") as refused:
        plan(text)
    assert message in str(refused.value)


TWO_FAMILIES = AddressPlan(
    nodes={"node-a": "172.30.0.1"},
    pods={"node-a": ipaddress.IPv4Network("10.244.1.0/24")},
    pods6={"node-a": ipaddress.IPv6Network("fd00:244:0:1::/64")},
    services6=ipaddress.IPv6Network("fd00:58::/112"),
    netns="ztun-1",
)


def test_pods_and_services_have_an_address_of_either_family_where_the_fabric_has_both() -> None:
    text = (
        deployment("web", replicas=2)
        + """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: fixed}
spec: {containers: []}
status: {podIP: 10.244.1.99}
"""
    )
    documents, _ = parse_documents(text, file="mesh.yaml")
    mesh = plan_mesh(documents, TWO_FAMILIES)
    assert mesh.pod("default", "web").addresses == ("10.244.1.10", "fd00:244:0:1::a")
    assert mesh.pod("default", "fixed").addresses == ("10.244.1.99",)
    service = mesh.service("default", "web")
    assert (service.vip, service.vip6) == ("192.168.58.10", "fd00:58::a")
    documents, problems = parse_documents(yaml.safe_dump_all(mesh.objects), file="mesh.yaml")
    snapshot = translate(documents, settings=MeshSettings()).snapshot
    assert not problems
    for pod in mesh.pods:
        for address in pod.addresses:
            found = snapshot.workload_by_address("", address)
            assert found is not None
            assert found.name == pod.name
    for vip in (service.vip, service.vip6):
        assert snapshot.service_by_vip("", vip, "default") is not None


def test_namespaces_are_named_after_deployments_and_told_to_the_agent() -> None:
    text = deployment("wire") + deployment("web", replicas=2) + deployment("node-a")
    documents, _ = parse_documents(text, file="mesh.yaml")
    mesh = plan_mesh(documents, TWO_FAMILIES)
    # "wire" and "node-a" are machines of the fabric
    names = ["ztun-1-wire-2", "ztun-1-web", "ztun-1-web-2", "ztun-1-node-a-2"]
    assert [pod.netns for pod in mesh.pods] == names
    told = [one["metadata"]["annotations"]["ztun.io/netns"] for one in mesh.objects if one["kind"] == "Pod"]
    assert told == names
    assert not any(pod.netns for pod in plan(text.replace("node-a", "other")).pods)


def test_labels_say_whose_proxy_a_pod_has() -> None:
    mesh = plan(
        "".join(
            f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{label}}}}}
spec: {{containers: []}}
---"""
            for name, label in (
                ("own", 'sidecar.istio.io/inject: "true"'),
                ("none", "istio.io/dataplane-mode: none"),
                ("nodes", "app: web"),
            )
        )
    )
    assert {pod.name: pod.mode for pod in mesh.pods} == {"own": "sidecar", "none": "none", "nodes": "ambient"}


def test_a_network_without_free_addresses_is_an_error() -> None:
    network = ipaddress.IPv4Network("10.0.0.0/28")
    addresses = AddressPlan({"node-a": "10.0.0.1"}, {"node-a": network})
    documents, _ = parse_documents(deployment("web", replicas=6), file="mesh.yaml")
    with pytest.raises(ConfigError, match=r"no address is left in 10\.0\.0\.0/28"):
        plan_mesh(documents, addresses)
    assert list(zip(range(5), hosts(network), strict=False))[-1] == (4, "10.0.0.14")
