"""Analysis and fixes of anything that parses: findings, never an exception, and fixes that come to an end."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from waypoint.analysis.analyzer import analyze
from waypoint.analysis.codes import CODES
from waypoint.analysis.configuration import configuration_of
from waypoint.analysis.fixes import corrected, yaml_of
from ztun.mesh.document import Document

pytestmark = pytest.mark.unit

KINDS = {
    "networking.istio.io/v1": ["VirtualService", "DestinationRule", "Gateway", "ServiceEntry"],
    "gateway.networking.k8s.io/v1": ["Gateway", "TCPRoute", "TLSRoute", "ReferenceGrant"],
    "v1": ["Service", "Pod", "Namespace"],
    "apps/v1": ["Deployment"],
    "security.istio.io/v1": ["AuthorizationPolicy"],
}
WORDS = [
    "a",
    "b.default.svc.cluster.local",
    "*",
    "mesh",
    "default/gw",
    "10.0.0.0/8",
    "v1",
    "TCP",
    "PASSTHROUGH",
]
FIELDS = {
    "VirtualService": ["hosts", "tcp", "tls", "http", "gateways", "exportTo", "match", "route", "destination", "host",
                       "subset", "weight", "port", "number", "sniHosts", "destinationSubnets", "sourceLabels"],
    "DestinationRule": ["host", "subsets", "name", "labels", "trafficPolicy", "loadBalancer", "connectionPool", "tcp",
                        "workloadSelector", "matchLabels", "exportTo", "outlierDetection"],
    "Gateway": ["servers", "port", "number", "name", "protocol", "hosts", "tls", "mode", "selector", "listeners",
                "gatewayClassName"],
}  # fmt: skip
OTHERS = [
    *(
        "ports",
        "port",
        "selector",
        "clusterIP",
        "parentRefs",
        "rules",
        "backendRefs",
        "name",
        "kind",
        "hosts",
    ),
    *(
        "addresses",
        "targetRefs",
        "template",
        "metadata",
        "labels",
        "replicas",
        "spec",
        "from",
        "to",
        "namespace",
    ),
]
leaves = st.none() | st.booleans() | st.integers(-1, 70_000) | st.sampled_from(WORDS)


def values(kind: str) -> st.SearchStrategy[Any]:
    names = st.sampled_from(FIELDS.get(kind, OTHERS))
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=4),
        max_leaves=10,
    )


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    found = {}
    for order in range(draw(st.integers(1, 4))):
        version = draw(st.sampled_from(sorted(KINDS)))
        kind = draw(st.sampled_from(KINDS[version]))
        spec = draw(st.dictionaries(st.sampled_from(FIELDS.get(kind, OTHERS)), values(kind), max_size=5))
        name = draw(st.sampled_from(["a", "gw"]))
        data = {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": name, "labels": {"app": "a"}},
            "spec": spec,
        }
        one = Document(version, kind, "" if kind == "Namespace" else "default", name, data, order=order)
        found[one.key] = one
    return list(found.values())


@given(documents())
@settings(max_examples=300, deadline=None)
def test_anything_can_be_analyzed_and_fixed(found: list[Document]) -> None:
    problems = analyze(configuration_of(found))
    assert {one.code for one in problems} <= set(CODES)
    result = corrected(configuration_of(found))
    assert all(isinstance(one, dict) for one in yaml.safe_load_all(yaml_of(result)) if one is not None)
