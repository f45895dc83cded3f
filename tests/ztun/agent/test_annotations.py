"""What Istio's labels and annotations, and one of our own, ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ztun.agent.annotations import derived_uid, enrolment_of
from ztun.agent.enrolments import Enrolment
from ztun.agent.rules import CaptureOptions
from ztun.mesh.document import Problem
from ztun.resources.documents import parse_documents
from ztun.resources.schema import Metadata

pytestmark = pytest.mark.unit

AMBIENT = Metadata(labels={"istio.io/dataplane-mode": "ambient"})
PLAIN = Metadata()
INJECTED = Metadata(labels={"istio-injection": "enabled"})


def asked(
    metadata: dict[str, Any] | None = None,
    *,
    spec: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    namespace: Metadata | None = None,
    node: str = "",
    dns: bool = True,
) -> tuple[Enrolment | None, list[Problem]]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", **(metadata or {})},
        "spec": spec or {},
        "status": status or {},
    }
    documents, problems = parse_documents(yaml.safe_dump(pod), file="pods.yaml")
    assert not problems
    return enrolment_of(documents[0], namespace, node=node, dns=dns)


def enrolled(*arguments: Any, **options: Any) -> Enrolment:
    enrolment, problems = asked(*arguments, **options)
    assert enrolment is not None, problems
    assert not problems
    return enrolment


def annotated(**annotations: str) -> dict[str, Any]:
    keys = {
        "netns": "ztun.io/netns",
        "dns": "ambient.istio.io/dns-capture",
        "bypass": "ambient.istio.io/bypass-inbound-capture",
        "interfaces": "istio.io/reroute-virtual-interfaces",
        "redirection": "ambient.istio.io/redirection",
        "sidecar": "sidecar.istio.io/status",
    }
    return {"annotations": {keys[name]: value for name, value in annotations.items()}}


def test_a_plain_pod_is_captured_in_the_namespace_of_its_name() -> None:
    enrolment = enrolled()
    assert (enrolment.pod.namespace, enrolment.pod.name) == ("shop", "web")
    assert enrolment.pod.service_account == "default"
    assert enrolment.pod.uid == derived_uid("shop", "web")
    assert enrolment.netns == Path("/run/netns/web")
    assert enrolment.options == CaptureOptions()
    assert enrolment.origin == "document"


def test_everything_can_be_said() -> None:
    metadata = {
        "uid": "aaaa-1",
        **annotated(netns="/proc/1/ns/net", dns="false", bypass="true", interfaces="tap0, br1,"),
    }
    enrolment = enrolled(metadata, spec={"serviceAccountName": "seller", "nodeName": "n1"}, node="n1")
    assert (enrolment.pod.uid, enrolment.pod.service_account) == ("aaaa-1", "seller")
    assert enrolment.netns == Path("/proc/1/ns/net")
    assert enrolment.options == CaptureOptions(dns=False, inbound=False, virtual_interfaces=("tap0", "br1"))


def test_the_agent_may_do_without_dns_capture() -> None:
    assert not enrolled(dns=False).options.dns
    assert not enrolled(annotated(dns="true"), dns=False).options.dns


def test_pods_of_other_nodes_are_left_out() -> None:
    assert asked(spec={"nodeName": "n2"}, node="n1") == (None, [])
    assert enrolled(spec={"nodeName": "n2"})
    assert enrolled(node="n1")  # it names none


@pytest.mark.parametrize(
    "pod",
    [
        {"spec": {"hostNetwork": True}},
        {"status": {"phase": "Succeeded"}},
        {"status": {"phase": "Failed"}},
        {"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}},
        {"metadata": {"labels": {"gateway.networking.k8s.io/gateway-name": "waypoint"}}},
        {"metadata": {"labels": {"istio.io/gateway-name": "ingress"}}},
        {"metadata": {"labels": {"sidecar.istio.io/inject": "true"}}},
        {"metadata": annotated(redirection="disabled")},
        {"metadata": annotated(sidecar="{}")},
        {"spec": {"containers": [{"name": "istio-proxy"}]}},
    ],
)
@pytest.mark.parametrize("namespace", [None, AMBIENT])
def test_who_stays_out(pod: dict[str, Any], namespace: Metadata | None) -> None:
    asks = {"metadata": None} | pod
    assert asked(**asks, namespace=namespace) == (None, [])


def test_the_namespace_decides_when_it_is_known() -> None:
    ambient = {"labels": {"istio.io/dataplane-mode": "ambient"}}
    assert enrolled(namespace=AMBIENT)
    assert asked(namespace=PLAIN) == (None, [])
    assert asked(namespace=INJECTED) == (None, [])
    assert enrolled(ambient, namespace=PLAIN)
    assert enrolled(ambient, namespace=INJECTED)
    assert enrolled(annotated(redirection="enabled"), namespace=PLAIN)


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"uid": "a b"}, "metadata.uid"),
        ({"uid": 7}, "metadata.uid"),
        ({"uid": "x" * 129}, "metadata.uid"),
        (annotated(netns="../web"), "metadata.annotations['ztun.io/netns']"),
        (annotated(netns=".."), "metadata.annotations['ztun.io/netns']"),
        (annotated(netns="/proc/self/ns/net"), "metadata.annotations['ztun.io/netns']"),
        (annotated(netns="a\x00b"), "metadata.annotations['ztun.io/netns']"),
        (annotated(netns="/" + "x" * 5000), "metadata.annotations['ztun.io/netns']"),
        (annotated(interfaces="eth0; drop"), "metadata.annotations['istio.io/reroute-virtual-interfaces']"),
    ],
)
def test_what_is_wrong_is_reported_with_its_place(metadata: dict[str, Any], place: str) -> None:
    enrolment, problems = asked(metadata)
    assert enrolment is None
    assert [problem.path for problem in problems] == [place]
    assert problems[0].hint
    assert problems[0].location is not None
