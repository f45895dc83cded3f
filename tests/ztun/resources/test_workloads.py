"""Pods and WorkloadEntries become workloads with the right mode, owner, place and readiness."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ztun.mesh.model import Health, Locality, TunnelProtocol, Workload, WorkloadType
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit


def load(*objects: dict[str, Any], settings: MeshSettings | None = None) -> Snapshot:
    documents, problems = parse_documents(yaml.safe_dump_all(objects), file="mesh.yaml")
    assert problems == []
    return translate(documents, settings=settings or MeshSettings()).snapshot


def make(kind: str, name: str, *, api: str = "v1", **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns"} | rest.pop("metadata", {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata} | rest


def pod(
    name: str = "p", *, labels: dict[str, str] | None = None, ip: str = "10.0.0.1", **rest: Any
) -> dict[str, Any]:
    metadata = rest.pop("metadata", {}) | {"labels": labels or {}}
    status = {"podIP": ip} | rest.pop("status", {})
    return make("Pod", name, metadata=metadata, status=status, **rest)


def namespace(**labels: str) -> dict[str, Any]:
    names = {"mode": "istio.io/dataplane-mode", "injection": "istio-injection"}
    return make("Namespace", "ns", metadata={"labels": {names[key]: value for key, value in labels.items()}})


def workload(*objects: dict[str, Any]) -> Workload:
    state = load(*objects)
    assert state.problems == ()
    (found,) = state.workloads.values()
    return found


def test_a_pod() -> None:
    found = workload(
        pod(
            labels={"app": "echo", "version": "v1"},
            spec={
                "nodeName": "n1",
                "serviceAccountName": "echo",
                "containers": [{"name": "c", "image": "x"}],
            },
            status={"podIPs": [{"ip": "10.0.0.1"}, {"ip": "2001:DB8::1"}], "phase": "Running"},
        )
    )
    assert found.uid == "Kubernetes//Pod/ns/p"
    assert found.addresses == ("10.0.0.1", "2001:db8::1")
    assert (found.node, found.service_account, str(found.identity)) == (
        "n1",
        "echo",
        "spiffe://cluster.local/ns/ns/sa/echo",
    )
    assert (found.canonical_name, found.canonical_revision) == ("echo", "v1")
    assert (found.workload_type, found.workload_name) == (WorkloadType.POD, "p")
    assert found.tunnel_protocol is TunnelProtocol.NONE
    assert found.health is Health.HEALTHY


def test_kubectl_output_loads_as_it_is() -> None:
    found = workload(
        pod(
            metadata={
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "generateName": "p-",
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
                "annotations": {"note": "x" * 5000},
                "uid": "1",
                "resourceVersion": "5",
            },
            spec={"tolerations": [{"key": "a"}], "priority": 0, "containers": [{"name": "c", "ports": None}]},
            status={
                "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": None}],
                "hostIP": "1.1.1.1",
            },
        )
    )
    assert found.health is Health.HEALTHY


@pytest.mark.parametrize(
    ("labels", "around", "ambient", "sidecar"),
    [
        ({}, [], False, False),
        ({"istio.io/dataplane-mode": "ambient"}, [], True, False),
        ({}, [namespace(mode="ambient")], True, False),
        ({"istio.io/dataplane-mode": "none"}, [namespace(mode="ambient")], False, False),
        ({}, [namespace(injection="enabled")], True, True),
        ({}, [namespace(injection="enabled", mode="ambient")], True, True),
        ({"sidecar.istio.io/inject": "false"}, [namespace(injection="enabled", mode="ambient")], True, False),
        ({"sidecar.istio.io/inject": "true"}, [namespace(mode="ambient")], True, True),
        ({"istio.io/dataplane-mode": "ambient"}, [namespace(injection="enabled")], True, False),
        ({"sidecar.istio.io/inject": "false"}, [namespace(injection="enabled")], False, False),
    ],
)
def test_modes(labels: dict[str, str], around: list[dict[str, Any]], ambient: bool, sidecar: bool) -> None:
    found = workload(pod(labels=labels), *around)
    assert (found.tunnel_protocol is TunnelProtocol.HBONE) is ambient
    assert found.sidecar is sidecar
    assert found.native_tunnel is sidecar


def test_a_container_named_istio_proxy_is_a_sidecar() -> None:
    assert workload(
        pod(spec={"initContainers": [{"name": "istio-proxy"}]}), namespace(mode="ambient")
    ).sidecar


def test_host_network_pods_are_not_captured() -> None:
    found = workload(pod(spec={"hostNetwork": True}), namespace(mode="ambient", injection="enabled"))
    assert found.host_network
    assert found.tunnel_protocol is TunnelProtocol.NONE


@pytest.mark.parametrize(
    ("status", "deleted", "ready"),
    [
        ({}, False, True),
        ({"conditions": []}, False, True),
        ({"conditions": [{"type": "Ready", "status": "True"}]}, False, True),
        ({"conditions": [{"type": "Ready", "status": "False"}]}, False, False),
        ({"conditions": [{"type": "Ready", "status": "Unknown"}]}, False, False),
        ({"conditions": [{"type": "Initialized", "status": "False"}]}, False, True),
        ({}, True, False),
    ],
)
def test_readiness(status: dict[str, Any], deleted: bool, ready: bool) -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    assert (workload(pod(status=status, metadata=metadata)).health is Health.HEALTHY) is ready


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_that_have_ended_are_gone(phase: str) -> None:
    assert not load(pod(status={"phase": phase})).workloads


@pytest.mark.parametrize(
    ("kind", "owner", "labels", "expected"),
    [
        ("ReplicaSet", "echo-6d4cf56db6", {}, (WorkloadType.DEPLOYMENT, "echo")),
        ("ReplicaSet", "echo-x-abc", {"pod-template-hash": "abc"}, (WorkloadType.DEPLOYMENT, "echo-x")),
        ("Job", "backup", {}, (WorkloadType.JOB, "backup")),
        ("Job", "backup-28123456", {}, (WorkloadType.CRONJOB, "backup")),
        ("StatefulSet", "db", {}, (WorkloadType.POD, "db")),
    ],
)
def test_owners(kind: str, owner: str, labels: dict[str, str], expected: tuple[WorkloadType, str]) -> None:
    references = [{"apiVersion": "apps/v1", "kind": kind, "name": owner, "controller": True, "uid": "1"}]
    found = workload(pod(labels=labels, metadata={"ownerReferences": references}))
    assert (found.workload_type, found.workload_name) == expected


def test_locality_comes_from_the_node_and_else_from_the_pod() -> None:
    region, zone = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
    labels = {region: "r1", zone: "z1", "istio.io/subzone": "s1"}
    assert workload(pod(labels=labels)).locality == Locality("r1", "z1", "s1")
    node = make("Node", "n", metadata={"labels": {region: "r2", zone: "z2"}})
    assert workload(pod(labels=labels, spec={"nodeName": "n"}), node).locality == Locality("r2", "z2", "")


def test_networks_of_pods() -> None:
    assert workload(pod(labels={"topology.istio.io/network": "n1"})).network == "n1"
    state = load(pod(), settings=MeshSettings(network="own", trust_domain="td", cluster_id="c1"))
    (found,) = state.workloads.values()
    assert (found.network, found.trust_domain, found.uid) == ("own", "td", "c1//Pod/ns/p")


def entry(**spec: Any) -> dict[str, Any]:
    return make("WorkloadEntry", "vm", api="networking.istio.io/v1", spec=spec)


def test_a_workload_entry() -> None:
    found = workload(
        entry(
            address="10.1.0.1",
            labels={"app": "vm"},
            serviceAccount="vm",
            locality="r/z/s",
            weight=5,
            network="n",
            ports={"tcp": 9000},
        )
    )
    assert found.uid == "Kubernetes/networking.istio.io/WorkloadEntry/ns/vm"
    assert (found.addresses, found.service_account, found.capacity, found.network) == (
        ("10.1.0.1",),
        "vm",
        5,
        "n",
    )
    assert found.locality == Locality("r", "z", "s")
    assert found.tunnel_protocol is TunnelProtocol.NONE


def test_entries_known_by_name_and_entries_with_a_tunnel() -> None:
    assert workload(entry(address="DB.example")).hostname == "db.example"
    tunnelled = workload(entry(address="10.1.0.1", labels={"networking.istio.io/tunnel": "http"}))
    assert (tunnelled.tunnel_protocol, tunnelled.native_tunnel) == (TunnelProtocol.HBONE, True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (pod(ip="10.0.0.999"), "mesh.yaml:8:3 Pod ns/p status.podIP: '10.0.0.999' is not an IP address"),
        (pod(spec={"serviceAccountName": "a/b"}), "spec.serviceAccountName"),
        (pod(labels={"version": 1}), "metadata.labels.version: should be text"),  # type: ignore[dict-item]
        (entry(address="unix:///x"), "spec.address: unix domain sockets"),
        (entry(adress="10.0.0.1"), "spec.adress: unknown field"),
        (entry(address="10.0.0.1", weight=-1), "spec.weight"),
        (entry(address="10.0.0.1", labels=None), "labels has no value"),
    ],
)
def test_a_broken_object_is_left_out_and_the_others_stay(broken: dict[str, Any], message: str) -> None:
    state = load(broken, pod("healthy", ip="10.0.0.7"))
    assert [found.name for found in state.workloads.values()] == ["healthy"]
    (problem,) = state.problems
    assert message in str(problem)
    assert problem.hint.endswith("the object is left out")
