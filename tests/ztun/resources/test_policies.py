"""AuthorizationPolicies: what each field becomes, and that whatever is wrong with one never widens it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import SpiffeId
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.model import Authorization, PolicyAction, PolicyScope
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import Accepted, DocumentKey, translate

pytestmark = pytest.mark.unit

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "echo"}},
    "status": {"podIP": "10.0.0.1"},
}
CLIENT = SpiffeId("cluster.local", "ns", "client")
OTHER = SpiffeId("cluster.local", "foo", "other")


def policy(spec: Any, *, name: str = "p", namespace: str = "ns", **annotations: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": spec,
    }


def load(*objects: dict[str, Any], after: Sequence[dict[str, Any]] = ()) -> Snapshot:
    """The state that objects describe, in a proxy that had ``after`` before."""
    accepted: Mapping[DocumentKey, Accepted] = {}
    for described in (after, objects):
        documents, problems = parse_documents(yaml.safe_dump_all([POD, *described]), file="mesh.yaml")
        assert problems == []
        translation = translate(documents, settings=MeshSettings(), last_accepted=accepted)
        accepted = translation.accepted
    return translation.snapshot


def allowed(
    state: Snapshot,
    source: SpiffeId | None = CLIENT,
    *,
    port: int = 80,
    ip: str = "10.0.0.9",
    name: str = "p",
) -> bool:
    workload = state.workload_named("ns", name)
    assert workload is not None
    return authorize(state.policies_for(workload), Attempt(ip, source, workload.addresses[0], port)).allowed


def from_(**source: list[str]) -> dict[str, Any]:
    return {"from": [{"source": source}]}


def to(**operation: list[str]) -> dict[str, Any]:
    return {"to": [{"operation": operation}]}


def when(key: str, *values: str, no: tuple[str, ...] = ()) -> dict[str, Any]:
    condition: dict[str, Any] = {"key": key}
    if values:
        condition["values"] = list(values)
    if no:
        condition["notValues"] = list(no)
    return {"when": [condition]}


@pytest.mark.parametrize(
    ("rule", "client", "other", "plaintext"),
    [
        ({}, True, True, True),
        (from_(principals=["cluster.local/ns/ns/sa/client"]), True, False, False),
        (from_(principals=["cluster.local/ns/ns/*"]), True, False, False),
        (from_(principals=["*/sa/client"]), True, False, False),
        (from_(principals=["*"]), True, True, False),
        (from_(notPrincipals=["*"]), False, False, True),
        (from_(namespaces=["ns"]), True, False, False),
        (from_(notNamespaces=["ns"]), False, True, True),
        (from_(serviceAccounts=["client"]), True, False, False),
        (from_(serviceAccounts=["foo/other"]), False, True, False),
        (from_(notServiceAccounts=["client"]), False, True, True),
        (from_(ipBlocks=["10.0.0.0/24"]), True, True, True),
        (from_(ipBlocks=["10.0.0.8"]), False, False, False),
        (from_(notIpBlocks=["10.0.0.9/32"]), False, False, False),
        (to(ports=["80"]), True, True, True),
        (to(ports=[80]), True, True, True),  # type: ignore[list-item]
        (to(notPorts=["80"]), False, False, False),
        (from_(namespaces=["ns"]) | to(ports=["81"]), False, False, False),
        (when("source.namespace", "ns"), True, False, False),
        (when("source.principal", no=("*",)), False, False, True),
        (when("source.serviceAccount", "client"), True, False, False),
        (when("source.ip", "10.0.0.9"), True, True, True),
        (when("destination.ip", "10.0.0.0/30"), True, True, True),
        (when("destination.port", "80", "81"), True, True, True),
        (when("destination.port", no=("80",)), False, False, False),
        (from_(namespaces=["ns"]) | when("destination.port", "80"), True, False, False),
    ],
)
@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_what_a_rule_matches(
    rule: dict[str, Any], client: bool, other: bool, plaintext: bool, action: str
) -> None:
    state = load(policy({"action": action, "rules": [rule]}))
    assert state.problems == ()
    found = [allowed(state, source) for source in (CLIENT, OTHER, None)]
    assert found == [matched is (action == "ALLOW") for matched in (client, other, plaintext)]


def test_the_values_of_a_list_are_ored_and_so_are_sources_and_rules() -> None:
    assert allowed(load(policy({"rules": [from_(namespaces=["x", "ns"])]})))
    sources = {"from": [{"source": {"namespaces": ["x"]}}, {"source": {"namespaces": ["ns"]}}]}
    assert allowed(load(policy({"rules": [sources]})))
    assert allowed(load(policy({"rules": [from_(namespaces=["x"]), from_(namespaces=["ns"])]})))


@pytest.mark.parametrize("spec", [{}, {"rules": []}, {"action": "ALLOW"}])
def test_an_allow_policy_without_rules_allows_nothing(spec: dict[str, Any]) -> None:
    assert not allowed(load(policy(spec)))


def test_a_policy_without_spec_allows_nothing() -> None:
    bare = policy({})
    del bare["spec"]
    assert not allowed(load(bare))


def test_a_deny_policy_without_rules_denies_nothing() -> None:
    assert allowed(load(policy({"action": "DENY"})))


class TestScopes:
    @pytest.mark.parametrize(
        ("namespace", "spec", "scope", "applies"),
        [
            ("ns", {}, PolicyScope.NAMESPACE, True),
            ("other", {}, PolicyScope.NAMESPACE, False),
            ("istio-system", {}, PolicyScope.GLOBAL, True),
            ("ns", {"selector": {"matchLabels": {"app": "echo"}}}, PolicyScope.WORKLOAD_SELECTOR, True),
            ("ns", {"selector": {"matchLabels": {"app": "other"}}}, PolicyScope.WORKLOAD_SELECTOR, False),
            (
                "istio-system",
                {"selector": {"matchLabels": {"app": "echo"}}},
                PolicyScope.WORKLOAD_SELECTOR,
                True,
            ),
            ("other", {"selector": {"matchLabels": {"app": "echo"}}}, PolicyScope.WORKLOAD_SELECTOR, False),
            ("ns", {"selector": {}}, PolicyScope.NAMESPACE, True),
        ],
    )
    def test_scope(self, namespace: str, spec: dict[str, Any], scope: PolicyScope, applies: bool) -> None:
        state = load(policy(spec, namespace=namespace))
        assert state.policies[f"{namespace}/p"].scope is scope
        assert allowed(state) is not applies

    def test_attached_policies_are_for_waypoints(self) -> None:
        target = {"group": "", "kind": "Service", "name": "echo"}
        for spec in ({"targetRef": target}, {"targetRefs": [target]}):
            state = load(policy(spec))
            assert allowed(state)
            assert [one.name for one in state.policies_targeting("ns", "", "Service", "echo")] == ["p"]

    def test_dry_run(self) -> None:
        state = load(policy({}, **{"istio.io/dry-run": "true"}))
        assert state.policies["ns/p"].dry_run
        assert allowed(state)

    @pytest.mark.parametrize(("action", "severity"), [("AUDIT", "info"), ("CUSTOM", "warning")])
    def test_other_actions_have_no_effect_and_say_so(self, action: str, severity: str) -> None:
        state = load(policy({"action": action, "rules": [{}]}))
        assert not state.policies
        assert [one.severity for one in state.problems] == [severity]


class TestHttpConditions:
    HTTP = (
        to(methods=["GET"]),
        to(paths=["/x"]),
        to(notHosts=["a"]),
        from_(requestPrincipals=["*"]),
        from_(notRemoteIpBlocks=["10.0.0.0/8"]),
        when("request.headers[x]", "y"),
        when("remote.ip", "10.0.0.1"),
        when("connection.sni", "a.example"),
    )

    @pytest.mark.parametrize("rule", HTTP)
    def test_an_allow_rule_with_one_allows_nothing(self, rule: dict[str, Any]) -> None:
        state = load(policy({"rules": [from_(namespaces=["ns"]) | rule]}))
        assert not allowed(state)
        assert [(one.code, one.severity, one.path) for one in state.problems] == [
            ("AUTHZ-L7", "warning", "spec.rules[0]")
        ]

    def test_the_other_rules_of_an_allow_policy_stay(self) -> None:
        state = load(policy({"rules": [to(methods=["GET"]), from_(namespaces=["ns"])]}))
        assert (allowed(state, CLIENT), allowed(state, OTHER)) == (True, False)

    @pytest.mark.parametrize("rule", [one for one in HTTP if "from" not in one])
    def test_a_deny_rule_denies_by_what_remains(self, rule: dict[str, Any]) -> None:
        state = load(policy({"action": "DENY", "rules": [from_(namespaces=["ns"]) | rule]}))
        assert (allowed(state, CLIENT), allowed(state, OTHER)) == (False, True)
        assert "denies more than it says" in str(state.problems[0])

    @pytest.mark.parametrize("rule", HTTP)
    def test_a_deny_rule_of_which_nothing_remains_is_dropped_and_reported(self, rule: dict[str, Any]) -> None:
        state = load(policy({"action": "DENY", "rules": [rule]}))
        assert allowed(state)
        assert "the rule is dropped" in str(state.problems[0])

    def test_an_alternative_that_cannot_be_decided_does_not_hide_the_others(self) -> None:
        operations = {"to": [{"operation": {"ports": ["80"]}}, {"operation": {"methods": ["GET"]}}]}
        state = load(policy({"action": "DENY", "rules": [operations]}))
        assert (allowed(state, port=80), allowed(state, port=81)) == (False, True)
        both = load(policy({"action": "DENY", "rules": [from_(namespaces=["ns"]) | operations]}))
        assert (allowed(both, CLIENT, port=81), allowed(both, OTHER, port=80)) == (False, True)

    def test_conditions_mixed_in_one_source(self) -> None:
        mixed = from_(namespaces=["ns"], requestPrincipals=["*"])
        state = load(policy({"action": "DENY", "rules": [mixed]}))
        assert (allowed(state, CLIENT), allowed(state, OTHER)) == (False, True)


INVALID_RULES: list[Any] = [
    from_(ipBlocks=["10.0.0.0/8", "bogus"]),
    from_(ipBlocks=["bogus"]),
    from_(notIpBlocks=["10.0.0.300"]),
    from_(ipBlocks=["fe80::1%eth0"]),
    from_(principals=["a*b"]),
    from_(principals=["*a*"]),
    from_(principals=["**"]),
    from_(principals=["spiffe://cluster.local/ns/a/sa/b"]),
    from_(principals=["a b"]),
    from_(principals=[""]),
    from_(principals=[]),
    from_(serviceAccounts=["*"]),
    from_(serviceAccounts=["a/b/c"]),
    from_(principal=["x"]),
    from_(),
    {"from": []},
    {"from": None},
    {"from": [{}]},
    {"from": [{"source": None}]},
    {"from": [{"source": {"principals": None}}]},
    {"form": [{"source": {"principals": ["x"]}}]},
    to(ports=["0"]),
    to(ports=["080"]),
    to(ports=["65536"]),
    to(ports=["http"]),
    to(ports=[0]),  # type: ignore[list-item]
    to(ports=[True]),  # type: ignore[list-item]
    to(ports=["80-90"]),
    to(notPorts=["x"]),
    {"to": None},
    {"when": [{"key": "source.ip"}]},
    when("source.ips", "10.0.0.1"),
    when("source.ip", "x"),
    when("destination.port", "x"),
    when("source.principal", "a*b"),
    None,
    "allow all",
    [],
]


@pytest.mark.parametrize("rule", INVALID_RULES, ids=str)
class TestInvalidEntries:
    """One entry that cannot be read rejects the policy, loudly, and nothing is ever allowed because of it."""

    def test_allow(self, rule: Any) -> None:
        state = load(policy({"rules": [from_(namespaces=["ns"]), rule]}))
        assert not allowed(state)
        self.reported(state, "allows nothing for its namespace")

    def test_deny(self, rule: Any) -> None:
        state = load(policy({"action": "DENY", "rules": [rule]}))
        assert not allowed(state, OTHER)
        assert not allowed(state, None)
        self.reported(state, "denies everything for its namespace")

    def reported(self, state: Snapshot, consequence: str) -> None:
        assert {one.severity for one in state.problems} == {"error"}
        for problem in state.problems:
            assert problem.object == "AuthorizationPolicy ns/p"
            assert problem.path.startswith("spec.rules[")
            assert problem.location is not None
            assert problem.location.line > 10
            assert consequence in problem.hint


class TestInvalidPolicies:
    @pytest.mark.parametrize(
        "spec",
        [
            {"action": "DENNY", "rules": [from_(namespaces=["x"])]},
            {"action": None, "rules": [from_(namespaces=["x"])]},
            {"action": "DENY", "rule": []},
            {"action": "DENY", "rules": None},
            {"action": "DENY", "rules": {}, "selector": {"matchLabels": {"app": 1}}},
            {"action": "DENY", "selector": {"matchLabel": {"app": "other"}}},
        ],
        ids=str,
    )
    def test_what_is_not_clearly_allow_denies(self, spec: dict[str, Any]) -> None:
        state = load(policy(spec))
        assert state.problems
        assert not allowed(state) or state.policies["ns/p"].target_refs

    @pytest.mark.parametrize("spec", [None, [], "text"])
    def test_a_spec_that_is_no_mapping(self, spec: Any) -> None:
        state = load(policy(spec))
        assert not allowed(state)
        assert state.problems

    def test_a_readable_selector_limits_what_is_closed(self) -> None:
        second = POD | {
            "metadata": {"name": "q", "namespace": "ns", "labels": {"app": "other"}},
            "status": {"podIP": "10.0.0.2"},
        }
        state = load(
            second,
            policy({"action": "DENY", "selector": {"matchLabels": {"app": "echo"}}, "rules": [{"x": 1}]}),
        )
        assert (allowed(state, name="p"), allowed(state, name="q")) == (False, True)
        assert "denies everything for the workloads it selects" in state.problems[0].hint

    def test_a_readable_target_leaves_it_to_the_waypoint(self) -> None:
        target = {"kind": "Service", "name": "echo"}
        state = load(policy({"action": "DENY", "targetRefs": [target], "rules": [{"x": 1}]}))
        assert allowed(state)
        (closed,) = state.policies_targeting("ns", "", "Service", "echo")
        assert authorize([closed], Attempt("10.0.0.9", CLIENT, "10.0.0.1", 80)).allowed is False

    @pytest.mark.parametrize("several", [False, True])
    def test_a_target_in_another_namespace_does_not_open_what_was_closed(self, several: bool) -> None:
        """Nobody attaches it there, so nobody would enforce it."""
        target = {"kind": "Service", "name": "x", "namespace": "foo"}
        targets = (
            {"targetRefs": [{"kind": "Service", "name": "y"}, target]} if several else {"targetRef": target}
        )
        valid = policy({"action": "DENY", "rules": [from_(namespaces=["ns"])]})
        invalid = policy({"action": "DENY", "rules": [from_(namespaces=["ns"])], **targets})
        closed = load(invalid)
        (problem,) = closed.problems
        assert (problem.path, problem.severity) == (f"spec.targetRef{'s[1]' if several else ''}", "error")
        assert "another namespace" in problem.message
        assert "denies everything for its namespace" in problem.hint
        assert (allowed(closed, CLIENT), allowed(closed, OTHER)) == (False, False)
        kept = load(invalid, after=[valid])
        assert (allowed(kept, CLIENT), allowed(kept, OTHER)) == (False, True)

    @pytest.mark.parametrize("action", ["ALLOW", "DENY"])
    @pytest.mark.parametrize("annotation", ["true", "True", True])
    def test_a_slip_in_what_is_only_tried_out_denies_nothing(self, action: str, annotation: Any) -> None:
        slip = policy({"action": action, "rules": [{"x": 1}]}, **{"istio.io/dry-run": annotation})
        state = load(slip)
        assert state.policies["ns/p"].dry_run
        assert allowed(state)
        assert "as a dry run" in state.problems[0].hint

    @pytest.mark.parametrize("annotation", ["false", "", None, ["true"]])
    def test_what_is_not_clearly_tried_out_is_enforced(self, annotation: Any) -> None:
        assert not allowed(load(policy({"rules": [{"x": 1}]}, **{"istio.io/dry-run": annotation})))

    def test_audit_denies_nothing_even_if_it_is_not_valid(self) -> None:
        state = load(policy({"action": "AUDIT", "rules": [{"x": 1}]}))
        assert allowed(state)
        assert "until it is corrected it has no effect" in state.problems[0].hint

    @pytest.mark.parametrize(
        ("kind", "group", "hint"),
        [
            ("AuthorisationPolicy", "security.istio.io", "did you mean AuthorizationPolicy of"),
            ("peerauthentication", "security.istio.io", "did you mean PeerAuthentication of"),
            ("Policy", "security.istio.io", "did you mean AuthorizationPolicy or PeerAuthentication of"),
            (
                "AuthorizationPolicy",
                "securty.istio.io",
                "did you mean AuthorizationPolicy of security.istio.io/v1",
            ),
        ],
    )
    def test_what_is_not_enforced_for_its_spelling_is_an_error(
        self, kind: str, group: str, hint: str
    ) -> None:
        changed = {"kind": kind, "apiVersion": f"{group}/v1"}
        state = load(policy({}) | changed, policy({}, name="q") | changed)
        assert [(one.code, one.severity) for one in state.problems] == [("KIND", "error")] * 2, "of each"
        assert hint in state.problems[0].hint

    @pytest.mark.parametrize(
        ("kind", "group", "severity"),
        [
            ("RequestAuthentication", "security.istio.io", "warning"),
            ("AuthorizationPolicy", "policy.linkerd.io", "info"),
        ],
    )
    def test_what_others_enforce_is_no_error(self, kind: str, group: str, severity: str) -> None:
        state = load(policy({}) | {"kind": kind, "apiVersion": f"{group}/v1"})
        assert [(one.code, one.severity) for one in state.problems] == [("KIND", severity)]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70000)
    | st.sampled_from(["", "*", "80", "ns", "10.0.0.0/8", "ALLOW"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["from", "to", "when", "source", "operation", "ports", "principals", "key", "values", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
GOOD: dict[str, Any] = {
    "action": "ALLOW",
    "rules": [
        from_(principals=["cluster.local/ns/foo/sa/other"], notIpBlocks=["10.9.0.0/16"]) | to(ports=["80"]),
        when("source.namespace", "foo") | to(notPorts=["81", "82"]),
    ],
}


def corrupted(spec: Any, replacement: Any, rng: random.Random) -> Any:
    """``spec`` with one value, anywhere in it, replaced."""
    if not isinstance(spec, dict | list) or not spec or rng.random() < 0.2:
        return replacement
    if isinstance(spec, list):
        position = rng.randrange(len(spec))
        return [corrupted(one, replacement, rng) if n == position else one for n, one in enumerate(spec)]
    key = rng.choice(sorted(spec))
    return spec | {key: corrupted(spec[key], replacement, rng)}


def spec_loads(spec: Any) -> tuple[Snapshot, Authorization | None]:
    state = load(policy(spec))
    return state, state.policies.get("ns/p")


@given(junk, st.integers(0, 10_000))
def test_no_corruption_of_an_allow_policy_fails_to_load_or_lets_strangers_in_unreported(
    replacement: Any, seed: int
) -> None:
    state, found = spec_loads({**GOOD, "rules": corrupted(GOOD["rules"], replacement, random.Random(seed))})
    if any(one.severity == "error" for one in state.problems):
        assert found is not None
        assert found.rules == () or found.action is PolicyAction.DENY
        assert not allowed(state, CLIENT)
        assert not allowed(state, OTHER)


@given(junk)
def test_any_spec_gives_a_policy_or_a_problem(spec: Any) -> None:
    state, found = spec_loads(spec)
    assert found is not None or state.problems
