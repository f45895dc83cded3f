"""PeerAuthentication: the most specific mode counts, and what is not valid demands mutual TLS."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from certs.spiffe import SpiffeId
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit

IDENTITY = SpiffeId("cluster.local", "ns", "client")


def load(*objects: dict[str, Any]) -> Snapshot:
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": app, "namespace": namespace, "labels": {"app": app}},
            "status": {"podIP": ip},
        }
        for app, namespace, ip in (
            ("echo", "ns", "10.0.0.1"),
            ("web", "ns", "10.0.0.2"),
            ("far", "foo", "10.0.0.3"),
        )
    ]
    documents, problems = parse_documents(yaml.safe_dump_all([*pods, *objects]), file="mesh.yaml")
    assert problems == []
    return translate(documents, settings=MeshSettings()).snapshot


def rule(
    mode: str | None,
    namespace: str = "ns",
    app: str = "",
    ports: dict[Any, str] | None = None,
    *,
    name: str = "pa",
    created: str = "",
) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if mode is not None:
        spec["mtls"] = {"mode": mode}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    if ports:
        spec["portLevelMtls"] = {port: {"mode": value} for port, value in ports.items()}
    metadata = {"name": name, "namespace": namespace} | ({"creationTimestamp": created} if created else {})
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": metadata,
        "spec": spec,
    }


def plaintext(state: Snapshot, port: int = 80) -> str:
    """The pods that accept plaintext on a port."""
    found = []
    for pod in state.workloads.values():
        policies = state.policies_for(pod)
        assert authorize(policies, Attempt("10.0.0.9", IDENTITY, pod.addresses[0], port)).allowed
        if authorize(policies, Attempt("10.0.0.9", None, pod.addresses[0], port)).allowed:
            found.append(pod.name)
    return " ".join(found)


@pytest.mark.parametrize(
    ("objects", "accepting"),
    [
        ([], "echo web far"),
        ([rule("STRICT", "istio-system")], ""),
        ([rule("STRICT")], "far"),
        ([rule("STRICT", app="echo")], "web far"),
        ([rule("STRICT", "istio-system"), rule("PERMISSIVE")], "echo web"),
        ([rule("STRICT", "istio-system"), rule("DISABLE", app="web", name="w")], "web"),
        ([rule("STRICT", "istio-system"), rule("UNSET")], ""),
        ([rule("STRICT", "istio-system"), rule(None)], ""),
        ([rule("PERMISSIVE", "istio-system"), rule("STRICT"), rule("UNSET", app="web", name="w")], "far"),
        ([rule("STRICT"), rule("PERMISSIVE", app="echo", name="e")], "echo far"),
        ([rule("STRICT", "istio-system", app="echo")], "echo web far"),
    ],
)
def test_the_most_specific_mode_counts(objects: list[dict[str, Any]], accepting: str) -> None:
    state = load(*objects)
    assert state.problems == ()
    assert plaintext(state) == accepting


@pytest.mark.parametrize(
    ("mode", "ports", "on_80", "on_90"),
    [
        ("STRICT", {"90": "PERMISSIVE"}, False, True),
        ("STRICT", {90: "DISABLE"}, False, True),
        ("STRICT", {"90": "UNSET"}, False, False),
        ("PERMISSIVE", {"90": "STRICT"}, True, False),
        ("PERMISSIVE", {"90": "STRICT", "80": "STRICT"}, False, False),
        ("UNSET", {"90": "STRICT"}, True, False),
    ],
)
def test_modes_of_ports(mode: str, ports: dict[Any, str], on_80: bool, on_90: bool) -> None:
    state = load(rule(mode, app="echo", ports=ports))
    assert ("echo" in plaintext(state, 80), "echo" in plaintext(state, 90)) == (on_80, on_90)
    assert "web" in plaintext(state, 80)


def test_ports_inherit_the_mode_of_the_namespace() -> None:
    state = load(rule("STRICT"), rule("UNSET", app="echo", ports={"90": "PERMISSIVE"}, name="e"))
    assert (plaintext(state, 80), plaintext(state, 90)) == ("far", "echo far")


def test_the_oldest_of_two_counts() -> None:
    old = rule("STRICT", name="z", created="2025-01-01T00:00:00Z")
    new = rule("PERMISSIVE", name="a", created="2026-01-01T00:00:00Z")
    assert plaintext(load(new, old)) == "far"


def test_names_are_those_of_istiod() -> None:
    state = load(rule("STRICT"), rule("STRICT", app="echo", ports={"90": "PERMISSIVE"}, name="e"))
    assert sorted(state.policies) == [
        "istio-system/istio_converted_static_strict",
        "ns/converted_peer_authentication_e",
    ]


@pytest.mark.parametrize(
    ("broken", "accepting"),
    [
        (rule("STRIKT"), "far"),
        (rule("STRIKT", app="echo"), "web far"),
        (rule("PERMISSIVE", ports={"90": "PERMISSIVE"}), "far"),
        (rule("PERMISSIVE", app="echo", ports={"0": "PERMISSIVE"}), "web far"),
        (rule("PERMISSIVE", app="echo", ports={"65536": "PERMISSIVE"}), "web far"),
        (rule("PERMISSIVE", app="echo", ports={"http": "PERMISSIVE"}), "web far"),
        (rule("PERMISSIVE") | {"spec": {"mtl": {}}}, "far"),
        (rule("PERMISSIVE") | {"spec": {"mtls": None}}, "far"),
        (rule("PERMISSIVE") | {"spec": []}, "far"),
        (rule("STRIKT", "istio-system"), ""),
    ],
)
def test_what_is_not_valid_demands_mutual_tls(broken: dict[str, Any], accepting: str) -> None:
    state = load(broken)
    assert plaintext(state) == accepting
    assert state.problems
    assert all("until it is corrected it demands mutual TLS" in one.hint for one in state.problems)
