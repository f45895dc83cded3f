"""Pods that a running agent is told of: enrolled, changed, moved, removed, and deleted under it."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ztun.agent.conftest import Agents
from tests.ztun.agent.pods import PodNetwork, eventually
from tests.ztun.agent.processes import AgentProcess, pod_document
from tests.ztun.agent.tools import arranged, let_go, was_run
from tests.ztun.agent.zds_proxy import ZdsProxy
from tests.ztun.netns.namespaces import run
from ztun.zds.messages import AddWorkload, DelWorkload, Request

pytestmark = pytest.mark.netns

WEB = "default/web"


def test_a_pod_is_enrolled_and_let_out(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    with ZdsProxy(agent.uds) as proxy:
        proxy.ready()
        open_before = agent.descriptors()
        agent.write(pod_document("web", pod.name, uid="uid-1"))
        agent.wait_state(WEB, "enrolled")
        assert "table inet ztun" in pod.contents().ruleset
        status = pod.path.stat()
        assert proxy.namespaces == {"uid-1": (status.st_dev, status.st_ino)}
        assert proxy.requests[1:] == [AddWorkload("uid-1", "web", "default", "web")]
        agent.write()
        agent.wait_state(WEB, "")
        assert pod.contents() == before
        assert proxy.requests[2:] == [DelWorkload("uid-1")]
        eventually(lambda: agent.descriptors() == open_before, "descriptors are closed")


def test_a_pod_waits_untouched_until_a_proxy_serves_it(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent.write(pod_document("web", pod.name))
    eventually(
        lambda: "no proxy is connected" in agent.enrolled().get(WEB, {}).get("problem", ""), "it waits"
    )
    assert agent.state_of(WEB) == "waiting"
    assert pod.contents() == before
    answers = ["no room"]

    def answer(request: Request) -> str:
        return answers.pop() if answers and isinstance(request, AddWorkload) else ""

    with ZdsProxy(agent.uds, answer):
        agent.wait_state(WEB, "enrolled")
    assert answers == []
    assert any("no room" in str(line) for line in agent.lines())


def test_a_captured_pod_stays_so_without_a_proxy_and_is_served_by_the_next(
    network: PodNetwork, agent: AgentProcess
) -> None:
    pod = network.lonely_pod("web")
    agent.write(pod_document("web", pod.name))
    with ZdsProxy(agent.uds):
        agent.wait_state(WEB, "enrolled")
        captured = pod.contents()
    agent.wait_state(WEB, "captured")
    assert pod.contents() == captured
    with ZdsProxy(agent.uds) as second:
        agent.wait_state(WEB, "enrolled")
        assert second.names == {WEB}
        assert pod.contents() == captured


def test_other_annotations_are_other_rules(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", pod.name))
        agent.wait_state(WEB, "enrolled")
        assert "dport 53" in pod.contents().ruleset
        agent.write(pod_document("web", pod.name, annotations={"ambient.istio.io/dns-capture": "false"}))
        eventually(lambda: "dport 53" not in pod.contents().ruleset, "DNS is no longer captured")
        agent.wait_state(WEB, "enrolled")
        assert proxy.of(DelWorkload) == []
        assert len(proxy.of(AddWorkload)) == 1


def test_a_pod_moves_to_another_namespace(network: PodNetwork, agent: AgentProcess) -> None:
    old, new = network.lonely_pod("old"), network.lonely_pod("new")
    before = old.contents()
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", old.name))
        agent.wait_state(WEB, "enrolled")
        agent.write(pod_document("web", new.name))
        eventually(
            lambda: agent.state_of(WEB) == "enrolled" and agent.enrolled()[WEB]["netns"] == str(new.path),
            "it has moved",
        )
        assert old.contents() == before
        assert "table inet ztun" in new.contents().ruleset
        assert [type(one) for one in proxy.requests[1:]] == [AddWorkload, DelWorkload, AddWorkload]
        status = new.path.stat()
        assert list(proxy.namespaces.values()) == [(status.st_dev, status.st_ino)]


def test_a_pod_gets_another_service_account(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    document = pod_document("web", pod.name)
    with ZdsProxy(agent.uds) as proxy:
        agent.write(document)
        agent.wait_state(WEB, "enrolled")
        document["spec"]["serviceAccountName"] = "other"
        agent.write(document)
        eventually(lambda: len(proxy.of(AddWorkload)) == 2, "it is told anew")
        agent.wait_state(WEB, "enrolled")
        assert [type(one) for one in proxy.requests[1:]] == [AddWorkload, DelWorkload, AddWorkload]
        assert proxy.of(AddWorkload)[1].service_account == "other"


def test_a_pod_of_the_same_name_takes_the_place_of_another(network: PodNetwork, agent: AgentProcess) -> None:
    """Another uid in the same namespace, as a StatefulSet's pod that starts again."""
    pod = network.lonely_pod("web")
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", pod.name, uid="one"))
        agent.wait_state(WEB, "enrolled")
        agent.write(pod_document("web", pod.name, uid="two"))
        eventually(lambda: set(proxy.namespaces) == {"two"}, "the second has taken the place of the first")
        agent.wait_state(WEB, "enrolled")
        assert agent.enrolled()[WEB]["uid"] == "two"
        assert "table inet ztun" in pod.contents().ruleset


def test_a_namespace_that_is_deleted_and_made_again(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    with ZdsProxy(agent.uds) as proxy:
        proxy.ready()
        open_before = agent.descriptors()
        agent.write(pod_document("web", pod.name))
        agent.wait_state(WEB, "enrolled")
        run("ip", "netns", "del", pod.name)
        eventually(lambda: proxy.namespaces == {}, "the proxy was told")
        eventually(lambda: agent.descriptors() == open_before, "its descriptor is closed")
        agent.wait_state(WEB, "waiting")
        assert "no network namespace" in agent.enrolled()[WEB]["problem"]
        run("ip", "netns", "add", pod.name)
        pod.run("ip", "link", "set", "lo", "up")
        agent.wait_state(WEB, "enrolled")
        status = pod.path.stat()
        assert list(proxy.namespaces.values()) == [(status.st_dev, status.st_ino)]


def test_a_name_that_leads_to_another_namespace(network: PodNetwork, agent: AgentProcess) -> None:
    """Deleted and made again at once: the new one is captured, and nobody takes it for the old one."""
    pod = network.lonely_pod("web")
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", pod.name))
        agent.wait_state(WEB, "enrolled")
        agent.signal(signal.SIGSTOP)
        try:
            run("ip", "netns", "del", pod.name)
            run("ip", "netns", "add", pod.name)
            pod.run("ip", "link", "set", "lo", "up")
        finally:
            agent.signal(signal.SIGCONT)
        status = pod.path.stat()
        wanted = (status.st_dev, status.st_ino)
        eventually(lambda: list(proxy.namespaces.values()) == [wanted], "the new one is served")
        agent.wait_state(WEB, "enrolled")
        assert "table inet ztun" in pod.contents().ruleset


def test_two_proxies_while_one_takes_over(network: PodNetwork, agent: AgentProcess) -> None:
    first_pod, second_pod = network.lonely_pod("one"), network.lonely_pod("two")
    with ZdsProxy(agent.uds) as old:
        agent.write(pod_document("one", first_pod.name))
        agent.wait_state("default/one", "enrolled")
        with ZdsProxy(agent.uds) as new:
            new.ready()
            assert new.names == {"default/one"}
            agent.write(pod_document("one", first_pod.name), pod_document("two", second_pod.name))
            agent.wait_state("default/two", "enrolled")
            assert (new.names, old.names) == ({"default/one", "default/two"}, {"default/one"})
            agent.write(pod_document("two", second_pod.name))
            agent.wait_state("default/one", "")
            assert (new.names, old.names) == ({"default/two"}, set())
        # The new one has failed: the old one is told of whoever it does not know.
        eventually(lambda: old.names == {"default/two"}, "the old one serves again")
        agent.wait_state("default/two", "enrolled")


def test_one_pod_that_is_refused_does_not_keep_the_others(network: PodNetwork, agent: AgentProcess) -> None:
    pods = {name: network.lonely_pod(name) for name in ("bad", "good")}
    bad_before = pods["bad"].contents()

    def answer(request: Request) -> str:
        return "not this one" if isinstance(request, AddWorkload) and request.name == "bad" else ""

    agent.write(*(pod_document(name, pod.name) for name, pod in pods.items()))
    with ZdsProxy(agent.uds, answer) as proxy:
        proxy.ready()
        agent.wait_state("default/good", "enrolled")
        assert agent.state_of("default/bad") == "waiting"
        assert "not this one" in agent.enrolled()["default/bad"]["problem"]
    assert pods["bad"].contents() == bad_before


def test_wrong_documents_lose_nobody(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", pod.name))
        agent.wait_state(WEB, "enrolled")
        (agent.documents / "pods.yaml").write_text("kind: [")
        agent.write(pod_document("other", "../x"), name="other.yaml")
        eventually(
            lambda: sum("configuration problem" in str(line) for line in agent.lines()) >= 2, "it complains"
        )
        assert agent.state_of(WEB) == "enrolled"
        assert proxy.of(DelWorkload) == []
        (problem,) = (line["problem"] for line in agent.lines() if "other.yaml" in str(line))
        assert "other.yaml:" in problem
        assert "ztun.io/netns" in problem


def test_a_directory_that_is_removed_and_made_again(network: PodNetwork, agent: AgentProcess) -> None:
    web, other = network.lonely_pod("web"), network.lonely_pod("other")
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", web.name))
        agent.wait_state(WEB, "enrolled")
        shutil.rmtree(agent.documents)
        eventually(
            lambda: any("configuration problem" in str(line) for line in agent.lines()), "it complains"
        )
        assert agent.state_of(WEB) == "enrolled"
        agent.documents.mkdir()
        agent.write(pod_document("web", web.name), pod_document("other", other.name))
        agent.wait_state("default/other", "enrolled")
        assert proxy.of(DelWorkload) == []


def test_a_namespace_belongs_to_one_pod(network: PodNetwork, agent: AgentProcess) -> None:
    pod = network.lonely_pod("web")
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", pod.name))
        agent.wait_state(WEB, "enrolled")
        agent.write(pod_document("web", pod.name), pod_document("thief", str(pod.path)))
        eventually(lambda: agent.state_of("default/thief") == "waiting", "the second one waits")
        assert "is enrolled as default/web" in agent.enrolled()["default/thief"]["problem"]
        assert proxy.names == {WEB}


@pytest.mark.parametrize("path", ["/dev/null", "/etc", "/run/netns/../../etc/passwd"])
def test_what_is_no_namespace_is_not_entered(network: PodNetwork, agent: AgentProcess, path: str) -> None:
    with ZdsProxy(agent.uds):
        agent.write(pod_document("web", path))
        agent.wait_state(WEB, "waiting")
        assert "not a network namespace" in agent.enrolled()[WEB]["problem"]


def test_the_agents_own_namespace_is_not_captured(network: PodNetwork, agent: AgentProcess) -> None:
    with ZdsProxy(agent.uds) as proxy:
        agent.write(pod_document("web", f"/proc/{agent.pid}/ns/net"))
        agent.wait_state(WEB, "waiting")
        assert "the agent itself" in agent.enrolled()[WEB]["problem"]
        assert proxy.of(AddWorkload) == []


def test_a_pod_that_is_unwanted_again_while_its_rules_are_loaded(
    network: PodNetwork, agents: Agents, tmp_path: Path
) -> None:
    """A wish that comes in the middle of the work is not overwritten by its end."""
    pod, tools = network.lonely_pod("web"), tmp_path / "tools"
    before = pod.contents()
    agent = agents.start(environment=arranged(tools, "nft -f -", "waits"))
    with ZdsProxy(agent.uds) as proxy, ThreadPoolExecutor(2) as commands:
        coming = commands.submit(agent.ask, "enroll", pod.name, "--pod", WEB)
        eventually(lambda: was_run(tools), "its rules are being loaded")
        going = commands.submit(agent.ask, "unenroll", pod.name)
        eventually(lambda: agent.state_of(WEB) == "leaving", "it is to leave")
        let_go(tools)
        assert going.result().returncode == 0, going.result().stderr
        assert coming.result().returncode == 1
        assert "taken out again" in coming.result().stderr
        assert agent.enrolled() == {}
        assert proxy.namespaces == {}
    assert pod.contents() == before


def test_other_options_while_rules_are_loaded(network: PodNetwork, agents: Agents, tmp_path: Path) -> None:
    pod, tools = network.lonely_pod("web"), tmp_path / "tools"
    agent = agents.start(environment=arranged(tools, "nft -f -", "waits"))
    with ZdsProxy(agent.uds):
        agent.write(pod_document("web", pod.name))
        eventually(lambda: was_run(tools), "its rules are being loaded")
        agent.write(pod_document("web", pod.name, annotations={"ambient.istio.io/dns-capture": "false"}))
        let_go(tools)
        eventually(
            lambda: (ruleset := pod.contents().ruleset) and "dport 53" not in ruleset, "the last word counts"
        )
        agent.wait_state(WEB, "enrolled")
