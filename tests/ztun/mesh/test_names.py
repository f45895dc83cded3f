"""Short names: what a resolver in a pod would try."""

from __future__ import annotations

import pytest

from ztun.mesh.names import Alias, aliases, candidate_names, search_list

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("host", "expanded"),
    [
        ("echo", ["echo.ns.svc.cluster.local"]),
        ("echo.foo", ["echo.foo.svc.cluster.local", "echo.foo.ns.svc.cluster.local"]),
        ("echo.foo.svc", ["echo.foo.svc.cluster.local", "echo.foo.svc.svc.cluster.local"]),
        ("pod.echo.foo", ["pod.echo.foo.svc.cluster.local"]),
        ("pod.echo.foo.svc", ["pod.echo.foo.svc.cluster.local"]),
        ("echo.foo.svc.cluster.local", []),
        ("www.a.example.com", []),
    ],
)
def test_expansions(host: str, expanded: list[str]) -> None:
    assert list(candidate_names(f"{host.upper()}.", "ns", "cluster.local")) == [host, *expanded]


def test_a_search_suffix_may_have_been_appended() -> None:
    search = search_list("ns", "cluster.local")
    assert search == ("ns.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert list(aliases("Echo.foo.ns.svc.cluster.local.", "ns", "cluster.local", search)) == [
        Alias("echo.foo.ns.svc.cluster.local"),
        Alias("echo.foo", "echo.foo"),
        Alias("echo.foo.svc.cluster.local", "echo.foo"),
        Alias("echo.foo.ns", "echo.foo.ns"),
        Alias("echo.foo.ns.svc", "echo.foo.ns.svc"),
    ]


def test_no_name_comes_twice_and_a_bare_suffix_is_no_suffix() -> None:
    found = [one.name for one in aliases("svc.cluster.local", "ns", "cluster.local", ("svc.cluster.local",))]
    assert len(found) == len(set(found))
    assert next(aliases("cluster.local", "ns", "x", ("cluster.local",))) == Alias("cluster.local")
