"""Both sides of a ratio do the same work: policy, log and metrics are on in every proxy of every path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.paths import OPENERS, Mesh, MeshPath
from tests.bench.rows import Way
from tests.peers.envoy import EnvoyProcess
from tests.peers.node import ProxyProcess
from tests.peers.process import Process
from tests.peers.traffic import dial, read_exactly

pytestmark = pytest.mark.peer

COMPLETE = "connection complete"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("paths"), http=False) as mesh:
        yield mesh


def call(path: MeshPath) -> None:
    with dial(path.echo) as connection:
        connection.sendall(b"echo\n!")
        assert read_exactly(connection, 1) == b"!"


def wait_for_text(proxy: Process, log: Path, text: str) -> None:
    proxy.wait_until(lambda: log.exists() and text in log.read_text(), f"writing {text!r} to {log}")


@pytest.mark.parametrize("way", list(OPENERS), ids=lambda way: way.value)
def test_ztun_judges_logs_and_counts_every_connection(mesh: Mesh, way: Way) -> None:
    with mesh.open("ztun", way) as path:
        call(path)
        for proxy in path.proxies:
            assert isinstance(proxy, ProxyProcess)
            wait_for_text(proxy, proxy.log, COMPLETE)
            assert "istio_tcp_connections_opened_total{" in proxy.metrics()
        for proxy in path.proxies[1:]:
            assert isinstance(proxy, ProxyProcess)
            assert proxy.admin("/config_dump")["policies"]


@pytest.mark.parametrize("way", list(OPENERS), ids=lambda way: way.value)
def test_envoy_judges_logs_and_counts_every_connection(mesh: Mesh, way: Way) -> None:
    with mesh.open("envoy", way) as path:
        call(path)
        for proxy in path.proxies:
            assert isinstance(proxy, EnvoyProcess)
            log = mesh.directory / f"{proxy.name}.access"
            wait_for_text(proxy, log, COMPLETE if proxy is path.proxies[0] else '"method":"CONNECT"')
        for proxy in path.proxies[1:]:
            assert isinstance(proxy, EnvoyProcess)
            assert proxy.stat("http[.].*[.]rbac[.]allowed") == 1
            assert proxy.stat("http[.].*[.]rbac[.]denied") == 0
            assert proxy.stat("listener[.].*[.]ssl[.]ciphers[.]TLS_AES_128_GCM_SHA256") == 1
