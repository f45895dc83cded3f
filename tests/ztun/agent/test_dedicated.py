"""Dedicated mode: a workload and a real proxy in one namespace, captured from inside (a compose service, a VM)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.node import Pod as MeshPod
from tests.peers.node import write_mesh
from tests.ztun.agent.pods import PATIENCE_SECONDS, Pod, PodNetwork, dial, eventually, listener
from tests.ztun.agent.processes import ztun
from tests.ztun.netns.namespaces import InsideNode
from tests.ztun.proxy.processes import completed

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

PORT = 9000


@dataclass
class Workload:
    """A pod, its proxy and where its state is kept."""

    pod: Pod
    proxy: InsideNode
    state: Path

    def enroll(self, *options: str) -> CompletedProcess[str]:
        return ztun("enroll", "--self", "--state", self.state, *options, pod=self.pod)

    def unenroll(self) -> CompletedProcess[str]:
        return ztun("unenroll", "--self", "--state", self.state, pod=self.pod)


@pytest.fixture
def alone(network: PodNetwork, tmp_path: Path) -> Workload:
    """A workload whose proxy is not started."""
    pod = network.lonely_pod("alone")
    return Workload(pod, None, tmp_path / "state")  # type: ignore[arg-type]


@pytest.fixture
def workloads(network: PodNetwork, tmp_path: Path) -> Iterator[dict[str, Workload]]:
    """Two workloads with a proxy each."""
    authority = ThrowAwayAuthority(tmp_path)
    pods = {name: network.two_family_pod(name) for name in ("client", "server")}
    write_mesh(tmp_path / "mesh", [MeshPod(name, pod.ip, name) for name, pod in pods.items()])
    with ExitStack() as stack:
        found = {}
        for name, pod in pods.items():
            proxy = InsideNode(
                pod.namespace,
                name,
                config=tmp_path / "mesh",
                authority=authority.directory,
                directory=tmp_path,
                environment={
                    "ZTUN_CAPTURE": "true",
                    "PACKET_MARK": "1337",
                    "ENABLE_ORIG_SRC": "true",
                    "LOG_FORMAT": "json",
                },
            )
            proxy.spawn()
            stack.push(proxy)
            found[name] = Workload(pod, proxy, tmp_path / f"{name}-state")
        for one in found.values():
            one.proxy.wait_ready()
        yield found


@contextmanager
def connection(client: Pod, server: Pod) -> Iterator[str]:
    """A connection with bytes both ways; gives who the server sees."""
    with listener(server, server.ip, PORT) as listening, dial(client, server.ip, PORT) as near:
        far, peer = listening.accept()
        with far:
            far.settimeout(PATIENCE_SECONDS)
            for sender, receiver in ((near, far), (far, near)):
                sender.sendall(b"ping")
                assert receiver.recv(100) == b"ping"
            yield peer[0]


def test_traffic_both_ways_and_then_no_trace(workloads: dict[str, Workload]) -> None:
    client, server = workloads["client"], workloads["server"]
    before = {name: one.pod.contents() for name, one in workloads.items()}
    for one in workloads.values():
        done = one.enroll()
        assert done.returncode == 0, done.stderr
        assert "PACKET_MARK=1337" in done.stdout
    for source, target in ((client, server), (server, client)):
        count = len(completed(target.proxy))
        with connection(source.pod, target.pod) as seen:
            assert seen == source.pod.ip
        eventually(lambda target=target, count=count: len(completed(target.proxy)) > count, "it is reported")
        record = completed(target.proxy)[-1]
        assert record["src.identity"].endswith(f"/sa/{source.proxy.name.removeprefix('ztun-')}")
        assert record["dst.hbone_addr"] == f"{target.pod.ip}:{PORT}"
    for name, one in workloads.items():
        undone = one.unenroll()
        assert (undone.returncode, undone.stdout) == (0, "no longer captured\n"), undone.stderr
        assert one.pod.contents() == before[name]
    count = len(completed(server.proxy))
    with connection(client.pod, server.pod) as seen:
        assert seen == client.pod.ip
    assert len(completed(server.proxy)) == count


def test_without_its_proxy_a_workload_is_refused(alone: Workload) -> None:
    assert alone.enroll().returncode == 0
    for ip in ("10.79.0.2", "fd77::2"):
        with pytest.raises(ConnectionRefusedError):
            dial(alone.pod, ip, PORT)
    with listener(alone.pod, "127.0.0.1", PORT) as listening, dial(alone.pod, "127.0.0.1", PORT):
        listening.accept()[0].close()


def test_once_more_with_other_options(alone: Workload) -> None:
    before = alone.pod.contents()
    assert alone.enroll().returncode == 0
    assert "dport 53" in alone.pod.contents().ruleset
    assert alone.enroll("--no-dns", "--proxy-uid", "1337").returncode == 0
    ruleset = alone.pod.contents().ruleset
    assert "dport 53" not in ruleset
    assert "skuid 1337" in ruleset
    assert alone.unenroll().returncode == 0
    assert alone.pod.contents() == before
    again = alone.unenroll()
    assert again.returncode == 1
    assert "was not captured" in again.stderr


def test_a_container_that_is_made_anew_has_lost_its_state(alone: Workload, tmp_path: Path) -> None:
    before = alone.pod.contents()
    assert alone.enroll().returncode == 0
    alone.state = tmp_path / "new"
    assert alone.enroll("--no-dns").returncode == 0
    alone.state = tmp_path / "newer"
    assert alone.unenroll().returncode == 0
    assert alone.pod.contents() == before


def test_several_namespaces_may_share_a_state(network: PodNetwork, tmp_path: Path) -> None:
    pods = [network.lonely_pod(name) for name in ("one", "two")]
    before = [pod.contents() for pod in pods]
    for pod in pods:
        assert ztun("enroll", "--self", "--state", tmp_path / "state", pod=pod).returncode == 0
    for pod, contents in zip(pods, before, strict=True):
        assert ztun("unenroll", "--self", "--state", tmp_path / "state", pod=pod).returncode == 0
        assert pod.contents() == contents


def test_a_foreign_table_is_named_and_stays(alone: Workload) -> None:
    alone.pod.run("nft", "add", "table", "inet", "ztun")
    before = alone.pod.contents()
    refused = alone.enroll()
    assert refused.returncode == 1
    assert "not made by this command" in refused.stderr
    assert "hint:" in refused.stderr
    assert alone.pod.contents() == before
