"""Documents to a snapshot as a whole: what is kept, what is reported, and that nothing makes it fail."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ztun.resources.documents import parse_documents, read_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import MODELS, Translation, translate

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).resolve().parents[3] / "compose" / "examples"
SETTINGS = MeshSettings()


def load(*objects: dict[str, Any], after: Translation | None = None) -> Translation:
    documents, problems = parse_documents(yaml.safe_dump_all(objects), file="mesh.yaml")
    assert problems == []
    if after is None:
        return translate(documents, settings=SETTINGS)
    return translate(documents, settings=SETTINGS, last_accepted=after.accepted, generation=2)


def make(kind: str, name: str, *, api: str = "v1", **rest: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "ns"}} | rest


SERVICE = make("Service", "echo", spec={"clusterIP": "10.10.0.1", "ports": [{"port": 80}]})
BROKEN = make("Service", "echo", spec={"clusterIP": "10.10.0.1", "ports": [{"port": "eighty"}]})
KEY = ("ns", "echo.ns.svc.cluster.local")
POLICY = make(
    "AuthorizationPolicy",
    "p",
    api="security.istio.io/v1",
    spec={"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]},
)
BROKEN_POLICY = POLICY | {"spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["x"]}}]}]}}


def test_an_object_that_breaks_keeps_its_last_valid_version() -> None:
    first = load(SERVICE, POLICY)
    second = load(BROKEN, BROKEN_POLICY, after=first)
    assert second.snapshot.services[KEY].ports.keys() == {80}
    assert second.snapshot.policies == first.snapshot.policies
    assert [one.hint for one in second.snapshot.problems] == ["the last valid version stays in force"] * 2
    third = load(BROKEN, BROKEN_POLICY, after=second)
    assert third.snapshot.policies == first.snapshot.policies


def test_an_object_that_is_removed_is_gone() -> None:
    assert not load(make("Pod", "p"), after=load(SERVICE, POLICY)).snapshot.policies


def test_an_object_that_never_was_valid_is_left_out() -> None:
    assert not load(BROKEN).snapshot.services


def test_unchanged_documents_are_not_validated_again() -> None:
    documents, _ = parse_documents(yaml.safe_dump_all([SERVICE, POLICY]), file="mesh.yaml")
    first = translate(documents, settings=SETTINGS)
    second = translate(documents, settings=SETTINGS, last_accepted=first.accepted)
    assert all(second.accepted[key].model is one.model for key, one in first.accepted.items())
    assert second.snapshot.services == first.snapshot.services


def test_unknown_kinds_are_reported_once_and_known_ones_not() -> None:
    silent = [
        make("ServiceAccount", "a"),
        make("Deployment", "a", api="apps/v1"),
        make("VirtualService", "a", api="networking.istio.io/v1", spec={"anything": 1}),
    ]
    state = load(*silent, make("ConfigMap", "a"), make("ConfigMap", "b"), make("Endpoints", "a")).snapshot
    assert [(one.code, one.severity, one.object) for one in state.problems] == [
        ("KIND", "info", "ConfigMap ns/a"),
        ("KIND", "info", "Endpoints ns/a"),
    ]


def test_a_kind_in_another_spelling_is_a_warning_that_says_how_to_write_it() -> None:
    state = load(make("pod", "a"), make("serviceentry", "a", api="networking.istio.io/v1")).snapshot
    assert [(one.severity, one.hint) for one in state.problems] == [
        ("warning", "write Pod"),
        ("warning", "write ServiceEntry"),
    ]


def test_kinds_of_the_same_name_in_different_groups_are_different() -> None:
    ours = make("Gateway", "a", api="gateway.networking.k8s.io/v1", spec={"gatewayClassName": "x"})
    istio = make("Gateway", "a", api="networking.istio.io/v1", spec={})
    knative = make("Service", "a", api="serving.knative.dev/v1", spec={"template": {}})
    state = load(ours, istio, knative).snapshot
    assert [document.api_version for document in state.documents] == [
        "gateway.networking.k8s.io/v1",
        "networking.istio.io/v1",
    ]
    assert not state.services


def test_routing_documents_are_kept_as_they_are() -> None:
    kinds = ["VirtualService", "DestinationRule", "Gateway"]
    objects = [make(kind, "a", api="networking.istio.io/v1", spec={"x": kind}) for kind in kinds]
    state = load(*objects).snapshot
    assert [document.data for document in state.documents] == objects


def test_the_order_of_documents_does_not_matter() -> None:
    objects = [
        SERVICE | {"spec": {"selector": {"app": "echo"}, "ports": [{"port": 80, "targetPort": "app"}]}},
        make(
            "Pod",
            "p",
            spec={"containers": [{"name": "c", "ports": [{"name": "app", "containerPort": 8080}]}]},
            status={"podIP": "10.0.0.1"},
        )
        | {"metadata": {"name": "p", "namespace": "ns", "labels": {"app": "echo"}}},
        POLICY,
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "ns", "labels": {"istio-injection": "enabled"}},
        },
    ]
    expected = load(*objects).snapshot
    for order in itertools.permutations(objects):
        found = load(*order).snapshot
        assert found.workloads == expected.workloads
        assert found.services == expected.services
        assert found.policies == expected.policies


def test_the_examples_load_without_errors() -> None:
    documents, problems = read_documents([EXAMPLES / "corrected"])
    state = translate(documents, settings=SETTINGS, problems=problems).snapshot
    assert [one for one in state.problems if one.severity == "error"] == []
    assert ("default", "echo-server.default.svc.cluster.local") in state.services


VALID: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "ns", "labels": {"istio.io/use-waypoint": "wp"}},
    },
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}},
    },
    make(
        "Pod",
        "p",
        spec={"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "x"}]}]},
        status={
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "a", "status": "b"}],
        },
    ),
    make("Service", "s", spec={"clusterIP": "10.1.0.1", "selector": {"a": "b"}, "ports": [{"port": 80}]}),
    make(
        "EndpointSlice",
        "e",
        api="discovery.k8s.io/v1",
        endpoints=[{"addresses": ["10.9.0.1"], "conditions": {"ready": True}}],
        ports=[{"port": 80}],
    ),
    make(
        "Gateway",
        "wp",
        api="gateway.networking.k8s.io/v1",
        spec={"gatewayClassName": "istio-waypoint", "listeners": [{"port": 15008, "protocol": "HBONE"}]},
    ),
    make(
        "ServiceEntry",
        "se",
        api="networking.istio.io/v1",
        spec={
            "hosts": ["a.example"],
            "addresses": ["10.2.0.0/16"],
            "ports": [{"number": 80, "name": "tcp"}],
            "resolution": "STATIC",
            "endpoints": [{"address": "10.9.0.2", "labels": {"a": "b"}}],
        },
    ),
    make("WorkloadEntry", "we", api="networking.istio.io/v1", spec={"address": "10.9.0.3"}),
    POLICY,
    make(
        "PeerAuthentication",
        "pa",
        api="security.istio.io/v1",
        spec={
            "selector": {"matchLabels": {"a": "b"}},
            "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"80": {}},
        },
    ),
]
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=5,
)


def corrupted(data: Any, replacement: Any, rng: random.Random, depth: int = 0) -> Any:
    """``data`` with one value, anywhere in it, replaced."""
    if not isinstance(data, dict | list) or not data or (depth > 1 and rng.random() < 0.25):
        return replacement
    if isinstance(data, list):
        position = rng.randrange(len(data))
        return [
            corrupted(one, replacement, rng, depth + 1) if n == position else one
            for n, one in enumerate(data)
        ]
    key = rng.choice(sorted(data))
    return data | {key: corrupted(data[key], replacement, rng, depth + 1)}


def test_every_kind_has_a_valid_document_here() -> None:
    documents, _ = parse_documents(yaml.safe_dump_all(VALID), file="f")
    assert {(one.group, one.kind) for one in documents} == set(MODELS)
    assert load(*VALID).snapshot.problems == ()


@given(st.sampled_from(range(len(VALID))), junk, st.integers(0, 10_000))
def test_no_corruption_of_any_object_makes_translation_fail_or_takes_others_away(
    index: int, replacement: Any, seed: int
) -> None:
    rng = random.Random(seed)
    objects = [corrupted(one, replacement, rng) if n == index else one for n, one in enumerate(VALID)]
    documents, problems = parse_documents(yaml.safe_dump_all(objects), file="f")
    state = translate(documents, settings=SETTINGS, problems=problems).snapshot
    found = {(one.kind, one.name) for one in documents} & {
        (one["kind"], one["metadata"]["name"]) for one in VALID
    }
    if ("Pod", "p") in found and index != 2:
        assert state.workload_named("ns", "p") is not None
    if ("Service", "s") in found and index != 3:
        assert ("ns", "s.ns.svc.cluster.local") in state.services
