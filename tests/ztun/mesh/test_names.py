"""Short names: what a resolver in a pod would try."""

from __future__ import annotations

import pytest

from ztun.mesh.names import candidate_names

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("host", "expanded"),
    [
        ("echo", ["echo.ns.svc.cluster.local"]),
        ("echo.foo", ["echo.foo.svc.cluster.local", "echo.foo.ns.svc.cluster.local"]),
        ("echo.foo.svc", ["echo.foo.svc.cluster.local"]),
        ("pod.echo.foo", ["pod.echo.foo.svc.cluster.local"]),
        ("pod.echo.foo.svc", ["pod.echo.foo.svc.cluster.local"]),
        ("echo.foo.svc.cluster.local", []),
        ("www.a.example.com", []),
    ],
)
def test_expansions(host: str, expanded: list[str]) -> None:
    assert list(candidate_names(f"{host.upper()}.", "ns", "cluster.local")) == [host, *expanded]
