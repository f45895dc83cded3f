"""A node proxy that is a pod itself, and one that lacks the privileges for other pods."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import HTTP_SECONDS, Pod, write_mesh
from tests.peers.traffic import ROOT
from tests.ztun.agent.pods import PodNetwork
from tests.ztun.agent.processes import AgentProcess, pod_document
from tests.ztun.netns.namespaces import InsideNode, missing
from tests.ztun.proxy.processes import completed

pytestmark = pytest.mark.netns

REASON = missing()
COMMAND_SECONDS = 60.0


def test_a_pod_reads_the_proxys_metrics_through_a_tunnel(tmp_path: Path) -> None:
    if REASON:
        pytest.skip(REASON)
    with PodNetwork() as network, contextlib.ExitStack() as stack:
        node, client = network.two_family_pod("node"), network.two_family_pod("client")
        documents = [
            Pod("client", client.ip, "node"),
            Pod("ztunnel", node.ip, "node", namespace="istio-system"),
        ]
        (tmp_path / "agent").mkdir()
        agent = stack.enter_context(AgentProcess(tmp_path / "agent", "--no-dns"))
        proxy = InsideNode(
            node.namespace,
            "node",
            config=write_mesh(tmp_path / "mesh", documents),
            authority=ThrowAwayAuthority(tmp_path).directory,
            directory=tmp_path,
            environment={
                "INPOD_ENABLED": "true",
                "INPOD_UDS": str(agent.uds),
                "LOG_FORMAT": "json",
                "POD_NAME": "ztunnel",
                "POD_NAMESPACE": "istio-system",
                "SERVICE_ACCOUNT": "ztunnel",
            },
        )
        proxy.spawn()
        stack.push(proxy)
        proxy.wait_ready()
        agent.write(pod_document("client", str(client.path)))
        agent.wait_state("default/client", "enrolled")
        url = f"http://{node.ip}:{proxy._metrics}/metrics"
        answer = client.inside(lambda: httpx.get(url, timeout=HTTP_SECONDS, trust_env=False))
        assert "istio_build" in answer.text
        proxy.wait_until(lambda: len(completed(proxy)) == 2, "done with the connection, at both its ends")
        record = next(one for one in completed(proxy) if one["direction"] == "inbound")
        assert record["src.identity"] == "spiffe://cluster.local/ns/default/sa/client"
        assert record["dst.identity"] == "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
        assert record["dst.workload"] == "ztunnel"


@pytest.mark.parametrize("without", ["-sys_admin", "-net_admin,-net_raw"])
def test_a_proxy_without_privileges_says_so_at_start(tmp_path: Path, without: str) -> None:
    if REASON:
        pytest.skip(REASON)
    command = ["setpriv", f"--bounding-set={without}", "--inh-caps=-all", "--", sys.executable]
    command += ["-m", "ztun", "proxy", "--node", "node", "--config", str(write_mesh(tmp_path / "mesh", []))]
    command += ["--ca", str(ThrowAwayAuthority(tmp_path).directory)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
        cwd=ROOT,
        env={"INPOD_ENABLED": "true", "INPOD_UDS": str(tmp_path / "zds"), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode != 0
    assert "cannot work in the network namespaces of pods" in done.stderr + done.stdout
