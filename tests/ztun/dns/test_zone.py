"""Which names a client knows, and what they stand for."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztun.dns.directory import AWAY, CLIENT, HOME, external, kube, snapshot
from ztun.dns.zone import MAX_ADDRESSES, Known, ZoneOptions, look_up
from ztun.mesh.model import Service, Vip, Workload

pytestmark = pytest.mark.unit

MESH = snapshot()
PREFERRING = ZoneOptions(preferred_namespace="preferred")
SUFFIXED = ".app.svc.cluster.local"


def ask(
    name: str,
    family: Literal[4, 6] = 4,
    *,
    client: Workload = CLIENT,
    options: ZoneOptions = PREFERRING,
    mesh: object = MESH,
) -> Known | None:
    return look_up(mesh, client, name, family, rng=random.Random(1), options=options)  # type: ignore[arg-type]


FOUND: list[tuple[str, Literal[4, 6], list[str], str | None]] = [
    # Kubernetes names, short and long
    ("web", 4, ["10.96.0.1"], None),
    ("WEB", 4, ["10.96.0.1"], None),
    ("web.app", 4, ["10.96.0.1"], None),
    ("web.app.svc", 4, ["10.96.0.1"], None),
    ("web.app.svc.cluster.local", 4, ["10.96.0.1"], None),
    ("web.app.svc.cluster.local.", 4, ["10.96.0.1"], None),
    ("web.other", 4, ["10.96.0.2"], None),
    ("shop.other.svc", 4, ["10.96.0.3"], None),
    ("shop.other.svc.cluster.local", 4, ["10.96.0.3"], None),
    ("remote.other.svc.cluster.remote", 4, ["10.96.1.1"], None),
    # families
    ("dual", 4, ["10.96.0.4"], None),
    ("dual", 6, ["fd00::4"], None),
    ("six", 6, ["fd00::5"], None),
    ("six", 4, [], None),
    ("web", 6, [], None),
    ("four", 4, ["10.96.0.10"], None),
    ("four", 6, [], None),
    # networks
    ("far", 4, [], None),
    ("both", 4, ["10.96.0.7"], None),
    # the search list
    (f"web{SUFFIXED}", 4, ["10.96.0.1"], None),
    (f"shop.other{SUFFIXED}", 4, ["10.96.0.3"], "shop.other"),
    ("shop.other.svc.svc.cluster.local", 4, ["10.96.0.3"], "shop.other.svc"),
    ("shop.other.svc.cluster.local.cluster.local", 4, ["10.96.0.3"], "shop.other.svc.cluster.local"),
    (f"www.example.com{SUFFIXED}", 4, ["240.240.0.1"], "www.example.com"),
    ("www.example.com.svc.cluster.local", 4, ["240.240.0.1"], "www.example.com"),
    ("www.example.com.cluster.local", 4, ["240.240.0.1"], "www.example.com"),
    (f"www.example.com{SUFFIXED}", 6, [], None),
    (f"single{SUFFIXED}", 4, ["240.240.0.2"], "single"),
    # hosts of ServiceEntries
    ("www.example.com", 4, ["240.240.0.1"], None),
    ("Www.Example.Com.", 4, ["240.240.0.1"], None),
    ("single", 4, ["240.240.0.2"], None),
    # wildcards, the most specific first
    ("a.wild.example", 4, ["240.240.1.1"], None),
    ("a.b.wild.example", 4, ["240.240.1.1"], None),
    ("a.deep.wild.example", 4, ["240.240.1.2"], None),
    ("a.b.deep.wild.example", 4, ["240.240.1.2"], None),
    ("deep.wild.example", 4, ["240.240.1.1"], None),
    ("exact.wild.example", 4, ["240.240.1.3"], None),
    ("foo.svc.mesh.example", 4, ["240.240.1.4"], None),
    (f"foo.svc.mesh.example{SUFFIXED}", 4, ["240.240.1.4"], None),
    ("a.wild.example", 6, [], None),
    # visibility and ranking
    ("shared.other", 4, ["10.96.0.9"], None),
    ("rank.example", 4, ["240.240.2.2"], None),
    ("choice.example", 4, ["240.240.3.2"], None),
    ("canonical.example", 4, ["240.240.4.2"], None),
    ("own.example", 4, ["240.240.5.1"], None),
    ("hidden.example", 4, ["240.240.6.2"], None),
    ("half.example", 4, ["240.240.7.1"], None),
    # ExternalNames of names in the mesh
    ("near", 4, ["10.96.0.3"], "shop.other.svc.cluster.local"),
    ("near.app.svc.cluster.local", 6, [], "shop.other.svc.cluster.local"),
    (f"near{SUFFIXED}", 4, ["10.96.0.3"], "shop.other.svc.cluster.local"),
    (f"near.app{SUFFIXED}", 4, ["10.96.0.3"], "shop.other.svc.cluster.local"),
    ("chain", 4, ["10.96.0.3"], "shop.other.svc.cluster.local"),
    ("pods", 6, ["fd01::1", "fd01::2"], "db.app.svc.cluster.local"),
    # headless services, and their pods
    ("db", 4, ["10.1.0.1", "10.1.0.2"], None),
    ("db.app.svc.cluster.local", 6, ["fd01::1", "fd01::2"], None),
    ("db6", 6, ["fd01::5"], None),
    ("db6", 4, [], None),
    ("db0", 4, [], None),
    ("dball", 4, ["10.1.0.6"], None),
    ("db-0.db", 4, ["10.1.0.1"], None),
    ("db-1.db.app", 4, ["10.1.0.2", "10.1.0.22"], None),
    ("db-1.db.app.svc.cluster.local", 6, ["fd01::2"], None),
    ("six-0.db6", 4, [], None),
    (f"db-0.db{SUFFIXED}", 4, ["10.1.0.1"], None),
    (f"db-0.db.app{SUFFIXED}", 4, ["10.1.0.1"], "db-0.db.app"),
    ("db-far.db", 4, [], None),
]


@pytest.mark.parametrize(("name", "family", "addresses", "canonical"), FOUND)
def test_names_of_the_mesh(
    name: str, family: Literal[4, 6], addresses: list[str], canonical: str | None
) -> None:
    known = ask(name, family)
    assert known is not None
    assert sorted(known.addresses) == addresses
    assert known.canonical == canonical


@pytest.mark.parametrize(
    "name",
    [
        "shop",  # of another namespace
        "remote.other",  # of another cluster's domain
        "secret.other",
        "secret.other.svc.cluster.local",
        "novip",  # without virtual address
        "none.example.com",
        "net.example.com",  # a network is no address
        "wild.example",  # the wildcard needs a label
        "www.example.org",
        "example.com",
        "com",
        "web-0.web",  # pods of a service that has an address
        "db-sick.db",
        "nobody.db",
        "db-0.db.other",
        "cluster.local",
        "svc.cluster.local",
        "",
        ".",
        "10.96.0.1",
        "a..b",
        "*.wild.example",
        "a\\.wild.example",
        "\\255.wild.example",
        "-.wild.example",
        "x" * 64 + ".wild.example",
    ],
)
def test_all_other_names_belong_to_somebody_else(name: str) -> None:
    assert ask(name) is None


@pytest.mark.parametrize(("name", "target"), [("cdn", "cdn.example.net"), ("cdn.app.svc", "cdn.example.net")])
def test_an_external_name_outside_is_for_the_nameservers(name: str, target: str) -> None:
    known = ask(name)
    assert known == Known((), "alias of a name outside the mesh", target, outside=True)
    assert ask(name, 6, options=ZoneOptions(ipv6=False)) == Known(
        (), "service does not support this record type"
    )


def test_external_names_that_lead_to_each_other_lead_nowhere() -> None:
    known = ask("round")
    assert known is not None
    assert (known.addresses, known.outside, known.result) == ((), False, "no records")


def test_an_external_name_is_taken_literally() -> None:
    """No search list is applied to it, as none is in Kubernetes; what stands for a service still does."""
    known = ask("short")
    assert known is not None
    assert (known.addresses, known.canonical) == (("10.96.0.1",), "web")


def test_the_client_decides_what_a_name_means() -> None:
    elsewhere = Workload("o", "o", "other", ("10.0.0.2",), network=HOME)
    for name, ip in (("web", "10.96.0.2"), ("secret", "10.96.0.8"), ("rank.example", "240.240.2.1")):
        known = ask(name, client=elsewhere)
        assert known is not None
        assert known.addresses == (ip,)
    away = Workload("a", "a", "app", ("10.0.0.2",), network=AWAY)
    for name, ip in (("both", "10.97.0.7"), ("far", "10.96.0.6"), ("db", "10.1.0.4")):
        known = ask(name, client=away)
        assert known is not None
        assert known.addresses == (ip,)


def test_the_cluster_has_the_domain_it_says() -> None:
    service = Service("web", "app", "web.app.svc.corp.example", (Vip(HOME, "10.96.9.9"),))
    mesh = snapshot(service, cluster_domain="corp.example")
    for name in ("web", "web.app", "web.app.svc", "web.app.svc.corp.example"):
        known = ask(name, mesh=mesh)
        assert known is not None
        assert known.addresses == ("10.96.9.9",)
    known = ask("shop.app.svc.corp.example.app.svc.corp.example", mesh=mesh)
    assert known is None


def test_a_search_list_of_its_own() -> None:
    options = ZoneOptions(search=("corp.example", "example.com"))
    known = ask("www.example.com.corp.example", options=options)
    assert known is not None
    assert known.canonical == "www.example.com"
    assert ask(f"www.example.com{SUFFIXED}", options=options) is None
    assert ask("www.example.com.corp.example") is None


def test_without_ipv6_there_are_no_ipv6_addresses() -> None:
    options = ZoneOptions(ipv6=False)
    for name in ("dual", "six", "db"):
        known = ask(name, 6, options=options)
        assert known == Known((), "service does not support this record type")
    assert ask("www.example.org", 6, options=options) is None


@pytest.mark.parametrize(
    ("name", "family", "result"),
    [
        ("web", 4, "success"),
        ("web", 6, "no records"),
        ("four", 6, "service does not support this record type"),
    ],
)
def test_what_the_log_says(name: str, family: Literal[4, 6], result: str) -> None:
    known = ask(name, family)
    assert known is not None
    assert known.result == result


def test_addresses_come_in_any_order_and_not_without_end() -> None:
    many = kube("many", "app", *(f"10.200.{n // 250}.{n % 250}" for n in range(MAX_ADDRESSES + 500)))
    mesh = snapshot(many)
    rng = random.Random(3)
    answers = [
        known.addresses for _ in range(3) if (known := look_up(mesh, CLIENT, "many", 4, rng=rng)) is not None
    ]
    assert [len(set(one)) for one in answers] == [MAX_ADDRESSES] * 3
    assert answers[0] != answers[1] != answers[2]


@given(st.text(max_size=80), st.sampled_from([4, 6]))
def test_no_name_is_too_strange(name: str, family: Literal[4, 6]) -> None:
    known = ask(name, family)
    assert known is None or known.addresses == () or known.result == "success"


@given(st.sampled_from([one[0] for one in FOUND]), st.randoms())
def test_the_case_of_a_name_does_not_matter(name: str, rng: random.Random) -> None:
    spelt = "".join(rng.choice((letter.lower(), letter.upper())) for letter in name)
    assert ask(spelt) == ask(name)


def test_wildcards_are_not_answered_as_aliases_of_a_shorter_name() -> None:
    mesh = snapshot(external("*.corp", "app", "240.240.9.9"))
    known = ask(f"a.corp{SUFFIXED}", mesh=mesh)
    assert known == Known(("240.240.9.9",), "success", None)
