"""Two hundred pods on one node, in and out again: nothing is forgotten, nothing is left."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ztun.agent.pods import NETNS_DIRECTORY, Pod, PodNetwork, eventually
from tests.ztun.agent.processes import AgentProcess, pod_document
from tests.ztun.agent.zds_proxy import ZdsProxy
from ztun.agent.agent import RESERVED_DESCRIPTORS
from ztun.net.namespaces import DESCRIPTORS_EACH

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

PODS = 200
PATIENCE = 240.0
AT_ONCE = 4


def fingerprint(pod: Pod) -> str:
    """Rules, routing and the one setting that a capture changes, in one process for each pod."""
    script = (
        "nft list ruleset; for family in 4 6; do ip -$family rule; ip -$family route show table all; done;"
        " cat /proc/sys/net/ipv4/tcp_migrate_req"
    )
    return hashlib.sha256(pod.run("sh", "-ec", script).encode()).hexdigest()


def fingerprints(pods: list[Pod]) -> list[str]:
    with ThreadPoolExecutor(AT_ONCE) as workers:
        return list(workers.map(fingerprint, pods))


def own_namespaces() -> int:
    """Those of this process; others may run tests beside it."""
    return len(list(NETNS_DIRECTORY.glob(f"ztun-{os.getpid()}-*")))


def children(agent: AgentProcess) -> list[str]:
    return Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()


def test_two_hundred_pods(network: PodNetwork, agent: AgentProcess) -> None:
    pods = [network.lonely_pod(f"pod{number}") for number in range(PODS)]
    documents = [pod_document(f"pod{number}", pod.name) for number, pod in enumerate(pods)]
    names = {f"default/pod{number}" for number in range(PODS)}
    before = fingerprints(pods)
    namespaces = own_namespaces()
    with ZdsProxy(agent.uds) as proxy:
        proxy.ready()
        descriptors = agent.descriptors()

        def states() -> list[str]:
            return [one["state"] for one in agent.enrolled().values()]

        agent.write(*documents)
        eventually(lambda: states() == ["enrolled"] * PODS, "all are enrolled", PATIENCE)
        assert proxy.names == names
        assert len(set(proxy.namespaces.values())) == PODS
        held = descriptors + PODS * DESCRIPTORS_EACH
        eventually(lambda: agent.descriptors() == held, "each pod has its descriptors")
        captured = fingerprints(pods)
        assert not set(captured) & set(before)
        with ZdsProxy(agent.uds) as second:
            second.ready()
            assert second.names == names
        half = PODS // 2
        agent.write(*documents[:half])
        eventually(lambda: len(states()) == half, "half of them have gone", PATIENCE)
        assert fingerprints(pods) == captured[:half] + before[half:]
        held = descriptors + half * DESCRIPTORS_EACH
        eventually(lambda: agent.descriptors() == held, "each pod has its descriptors, and no more")
        gone = agent.ask("unenroll", "--all")
        assert gone.returncode == 0, gone.stderr
        assert len(gone.stdout.splitlines()) == half
        assert fingerprints(pods) == before
        assert proxy.names == set()
        eventually(lambda: agent.descriptors() == descriptors, "no descriptor is left")
        assert own_namespaces() == namespaces
        assert children(agent) == []
        assert states() == []


def test_more_pods_than_descriptors(network: PodNetwork, tmp_path: Path) -> None:
    """Those beyond the limit wait, untouched; the others are served; whoever goes makes room."""
    room = 16
    pods = [network.lonely_pod(f"pod{number}") for number in range(room + 8)]
    documents = [pod_document(f"pod{number}", pod.name) for number, pod in enumerate(pods)]
    before = fingerprints(pods)
    agent = AgentProcess(tmp_path)
    limit = RESERVED_DESCRIPTORS + room * DESCRIPTORS_EACH + 1  # one is not enough for a pod
    agent.argv = ["prlimit", f"--nofile={limit}:{limit}", "--", *agent.argv]
    with agent, ZdsProxy(agent.uds):

        def states() -> dict[str, str]:
            """By the name of the pod, why it waits, or its state."""
            return {one["pod"]: one["problem"] or one["state"] for one in agent.enrolled().values()}

        agent.write(*documents)
        expected = ["enrolled"] * room + ["no descriptor is left for this pod"] * 8
        eventually(lambda: sorted(states().values()) == expected, "as many as have room", PATIENCE)
        waiting = {number for number in range(len(pods)) if states()[f"pod{number}"] != "enrolled"}
        contents = fingerprints(pods)
        assert {number for number in range(len(pods)) if contents[number] == before[number]} == waiting
        agent.write(*(documents[number] for number in waiting))
        wanted = {f"pod{number}": "enrolled" for number in waiting}
        eventually(lambda: states() == wanted, "the others take their place", PATIENCE)
        agent.write()
        eventually(lambda: states() == {}, "all have gone", PATIENCE)
    assert fingerprints(pods) == before
