"""Authorization: every edge of the nesting, every attribute, and equality with a naive reference."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import SpiffeId
from ztun.mesh.authorization import Attempt, authorize, string_matches
from ztun.mesh.model import (
    Authorization,
    IpNetwork,
    Match,
    PolicyAction,
    PolicyScope,
    Rule,
    StringMatch,
    StringMatchKind,
)

pytestmark = pytest.mark.unit

ALLOW, DENY = PolicyAction.ALLOW, PolicyAction.DENY
EXACT, PREFIX, SUFFIX, PRESENCE = StringMatchKind
TLS = Attempt("127.0.0.1", SpiffeId("td", "namespace", "account"), "127.0.0.2", 8080)
OTHER_TLS = Attempt("192.168.0.1", SpiffeId("td", "other", "stranger"), "192.168.0.2", 9090)
PLAINTEXT = Attempt("127.0.0.1", None, "127.0.0.2", 8080)


def policy(
    *rules: Rule, action: PolicyAction = ALLOW, dry_run: bool = False, name: str = "p"
) -> Authorization:
    return Authorization(name, "ns", PolicyScope.NAMESPACE, action, rules, dry_run)


def matches(rules: Sequence[Rule], attempt: Attempt = TLS) -> bool:
    """A DENY policy that matches is the only thing that can deny here."""
    return not authorize([policy(*rules, action=DENY)], attempt).allowed


def exact(text: str) -> tuple[StringMatch, ...]:
    return (StringMatch(EXACT, text),)


NS = Match(namespaces=exact("namespace"))
OTHER_NS = Match(namespaces=exact("other"))
PORT = Match(destination_ports=(8080,))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((((Match(),),),), False),
        ((((Match(), Match()),),), False),
        ((((),),), True),
        (((),), True),
        ((), False),
        ((((Match(), NS),),), True),
        ((((Match(), OTHER_NS),),), False),
    ],
    ids=[
        "empty match",
        "empty matches",
        "empty clause",
        "rule without clauses",
        "no rules",
        "empty match beside a hit",
        "empty match beside a miss",
    ],
)
def test_rbac_empty_policy(rules: Sequence[Rule], expected: bool) -> None:
    assert matches(rules) is expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((((NS,), (PORT,)),), True),
        ((((NS,), (Match(destination_ports=(1,)),)),), False),
        ((((OTHER_NS, NS), (PORT,)),), True),
        ((((OTHER_NS,), (PORT,)),), False),
        ((((Match(namespaces=exact("namespace"), destination_ports=(1,)),),),), False),
        ((((NS,), ()),), True),
    ],
    ids=[
        "clauses are ANDed",
        "one clause misses",
        "matches are ORed",
        "no match of a clause",
        "types of a match are ANDed",
        "an empty clause does not narrow",
    ],
)
def test_rbac_nesting(rules: Sequence[Rule], expected: bool) -> None:
    assert matches(rules) is expected


def test_rbac_multi_rule() -> None:
    assert matches([((OTHER_NS,),), ((NS,),)])
    assert not matches([((OTHER_NS,),), ((Match(destination_ports=(1,)),),)])


def net(text: str) -> tuple[IpNetwork, ...]:
    return (ipaddress.ip_network(text, strict=False),)


ATTRIBUTES = {
    "principals": exact("td/ns/namespace/sa/account"),
    "namespaces": exact("namespace"),
    "service_accounts": (("namespace", "account"),),
    "source_ips": net("127.0.0.1"),
    "destination_ips": net("127.0.0.2"),
    "destination_ports": (8080,),
}
FROM_IDENTITY = ("principals", "namespaces", "service_accounts")


@pytest.mark.parametrize("attribute", sorted(ATTRIBUTES))
def test_each_attribute_for_plaintext_tls_and_other_tls(attribute: str) -> None:
    positive = [((Match(**{attribute: ATTRIBUTES[attribute]}),),)]  # type: ignore[arg-type]
    negative = [((Match(**{f"not_{attribute}": ATTRIBUTES[attribute]}),),)]  # type: ignore[arg-type]
    assert matches(positive, TLS)
    assert not matches(negative, TLS)
    assert not matches(positive, OTHER_TLS)
    assert matches(negative, OTHER_TLS)
    identity = attribute in FROM_IDENTITY
    assert matches(positive, PLAINTEXT) is not identity
    assert matches(negative, PLAINTEXT) is identity


def test_not_principals_presence_is_what_strict_means() -> None:
    strict = [((Match(not_principals=(StringMatch(PRESENCE),)),),)]
    assert matches(strict, PLAINTEXT)
    assert not matches(strict, TLS)


def test_a_negative_hit_overrides_a_positive_one() -> None:
    both = Match(destination_ports=(8080, 9090), not_destination_ports=(8080,))
    assert not matches([((both,),)], TLS)
    assert matches([((both,),)], OTHER_TLS)


@pytest.mark.parametrize(
    ("block", "source", "expected"),
    [
        ("127.0.0.1/24", "127.0.0.200", True),
        ("127.0.0.1/24", "127.0.1.1", False),
        ("0.0.0.0/0", "8.8.8.8", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("::/0", "8.8.8.8", False),
    ],
)
def test_cidr_range(block: str, source: str, expected: bool) -> None:
    assert matches([((Match(source_ips=net(block)),),)], TLS._replace(source_ip=source)) is expected


@pytest.mark.parametrize(
    ("kind", "value", "hits", "misses"),
    [
        (EXACT, "abc", ["abc"], ["ab", "abcd", "ABC", ""]),
        (PREFIX, "ab", ["ab", "abc"], ["xab", ""]),
        (SUFFIX, "bc", ["bc", "abc"], ["bcx", ""]),
        (PRESENCE, "", ["a"], [""]),
        (PREFIX, "", ["a"], [""]),
        (SUFFIX, "", ["a"], [""]),
        (EXACT, "", [], ["", "a"]),
        (EXACT, "a.c", ["a.c"], ["abc"]),
        (PREFIX, "a.*", ["a.*x"], ["abc"]),
    ],
)
def test_string_match(kind: StringMatchKind, value: str, hits: list[str], misses: list[str]) -> None:
    wanted = StringMatch(kind, value)
    assert [text for text in hits + misses if string_matches(wanted, text)] == hits


ANY: Rule = ()
NEVER: Rule = ((Match(destination_ports=(1,)),),)


def test_no_policies_allow() -> None:
    assert authorize([], TLS).allowed


def test_deny_comes_before_allow_and_is_named() -> None:
    verdict = authorize([policy(ANY, name="yes"), policy(ANY, action=DENY, name="no")], TLS)
    assert (verdict.allowed, verdict.policy) == (False, "ns/no")
    assert verdict.reason == "explicitly denied by: ns/no"


def test_an_allow_policy_that_does_not_match_denies() -> None:
    verdict = authorize([policy(NEVER)], TLS)
    assert (verdict.allowed, verdict.policy) == (False, None)
    assert verdict.reason == "allow policies exist, but none allowed"


def test_one_allow_policy_of_several_is_enough_and_is_named() -> None:
    verdict = authorize([policy(NEVER, name="a"), policy(ANY, name="b")], TLS)
    assert (verdict.allowed, verdict.policy) == (True, "ns/b")


def test_an_allow_policy_without_rules_denies_and_a_deny_policy_without_rules_does_not() -> None:
    assert not authorize([policy()], TLS).allowed
    assert authorize([policy(action=DENY)], TLS).allowed


def test_a_deny_that_does_not_match_leaves_the_decision_to_allow() -> None:
    assert authorize([policy(NEVER, action=DENY)], TLS).allowed
    assert not authorize([policy(NEVER, action=DENY), policy(NEVER)], TLS).allowed


def test_dry_run_is_reported_and_without_effect() -> None:
    verdict = authorize([policy(ANY, action=DENY, dry_run=True, name="d"), policy(NEVER, dry_run=True)], TLS)
    assert verdict.allowed
    assert verdict.dry_run == ("ns/d",)


strings = st.builds(
    StringMatch,
    st.sampled_from(list(StringMatchKind)),
    st.sampled_from(["", "td", "a", "ns", "td/ns/a/sa/x"]),
)
networks = st.sampled_from([ipaddress.ip_network(text) for text in ("10.0.0.0/8", "10.0.0.1/32", "::/0")])
ports = st.integers(1, 3)
accounts = st.tuples(st.sampled_from("ab"), st.sampled_from("xy"))


def few(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=2).map(tuple)


match_values = st.builds(
    Match,
    **dict.fromkeys(("namespaces", "not_namespaces", "principals", "not_principals"), few(strings)),
    **dict.fromkeys(
        ("source_ips", "not_source_ips", "destination_ips", "not_destination_ips"), few(networks)
    ),
    **dict.fromkeys(("service_accounts", "not_service_accounts"), few(accounts)),
    **dict.fromkeys(("destination_ports", "not_destination_ports"), few(ports)),
)
rules = few(few(few(st.one_of(st.just(Match()), match_values))))
policy_values = st.builds(
    Authorization,
    st.sampled_from("pqr"),
    st.just("ns"),
    st.just(PolicyScope.NAMESPACE),
    st.sampled_from(PolicyAction),
    rules,
    st.booleans(),
)
attempts = st.builds(
    Attempt,
    st.sampled_from(["10.0.0.1", "10.1.1.1", "192.168.0.1", "2001:db8::1"]),
    st.none() | st.builds(SpiffeId, st.just("td"), st.sampled_from("ab"), st.sampled_from("xy")),
    st.sampled_from(["10.0.0.1", "2001:db8::1"]),
    ports,
)


def naive(policies: Sequence[Authorization], attempt: Attempt) -> bool:
    """The semantics written down as plainly as they can be, sharing nothing with the implementation."""
    identity = attempt.source_identity
    values = {
        "namespaces": identity.namespace if identity else "",
        "principals": str(identity)[len("spiffe://") :] if identity else None,
        "service_accounts": (identity.namespace, identity.service_account) if identity else None,
        "source_ips": ipaddress.ip_address(attempt.source_ip),
        "destination_ips": ipaddress.ip_address(attempt.destination_ip),
        "destination_ports": attempt.destination_port,
    }

    def hit(attribute: str, wanted: object) -> bool:
        value = values[attribute]
        if isinstance(wanted, StringMatch):
            if not value:
                return False
            text = str(value)
            return {
                EXACT: text == wanted.value,
                PREFIX: text[: len(wanted.value)] == wanted.value,
                SUFFIX: wanted.value == "" or text[-len(wanted.value) :] == wanted.value,
                PRESENCE: True,
            }[wanted.kind]
        if isinstance(wanted, ipaddress.IPv4Network | ipaddress.IPv6Network):
            return value in wanted  # type: ignore[operator]
        return value == wanted

    def matched(one: Match) -> bool:
        for attribute in values:
            wanted, unwanted = getattr(one, attribute), getattr(one, f"not_{attribute}")
            if wanted and not [x for x in wanted if hit(attribute, x)]:
                return False
            if [x for x in unwanted if hit(attribute, x)]:
                return False
        return True

    def applies(one: Authorization) -> bool:
        for rule in one.rules:
            clauses = []
            for clause in rule:
                real = [match for match in clause if match != Match()]
                clauses.append(len(clause) == 0 or len([x for x in real if matched(x)]) > 0)
            if False not in clauses:
                return True
        return False

    live = [one for one in policies if not one.dry_run]
    if [one for one in live if one.action is DENY and applies(one)]:
        return False
    allowing = [one for one in live if one.action is ALLOW]
    return not allowing or len([one for one in allowing if applies(one)]) > 0


@given(st.lists(policy_values, max_size=4), attempts)
def test_authorize_equals_the_naive_reference(policies: list[Authorization], attempt: Attempt) -> None:
    assert authorize(policies, attempt).allowed is naive(policies, attempt)


@given(st.lists(policy_values, max_size=4), attempts)
def test_dry_run_never_changes_the_outcome(policies: list[Authorization], attempt: Attempt) -> None:
    enforced = [one for one in policies if not one.dry_run]
    assert authorize(policies, attempt).allowed is authorize(enforced, attempt).allowed
    assert authorize(policies, attempt).policy == authorize(enforced, attempt).policy
