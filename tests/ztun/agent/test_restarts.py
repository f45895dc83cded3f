"""Agents that end, are killed at any point and start again: nothing is lost, nothing is done twice, nothing is left."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.ztun.agent.conftest import Agents
from tests.ztun.agent.pods import PodNetwork, eventually
from tests.ztun.agent.processes import AgentProcess, pod_document, ztun
from tests.ztun.agent.tools import arranged, was_run
from tests.ztun.agent.zds_proxy import ZdsProxy
from tests.ztun.netns.namespaces import run
from ztun.zds.messages import AddWorkload, DelWorkload, KeepWorkload, SnapshotSent

pytestmark = pytest.mark.netns

WEB = "default/web"
# What an agent runs to bring a pod in, in this order, and the other way round to let it out.
ROUTES4, ROUTES6, RULES = "ip -4 -batch -", "ip -6 -batch -", "nft -f -"


def killed(agent: AgentProcess) -> None:
    assert agent.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("step", "how"), [(ROUTES4, "before"), (ROUTES4, "after"), (ROUTES6, "after"), (RULES, "after")]
)
def test_killed_while_a_pod_comes(
    network: PodNetwork, agents: Agents, tmp_path: Path, step: str, how: str
) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent = agents.start(environment=arranged(tmp_path / "tools", step, how))
    agent.write(pod_document("web", pod.name))
    with ZdsProxy(agent.uds):
        killed(agent)
    again = agents.start()
    with ZdsProxy(again.uds):
        again.wait_state(WEB, "enrolled")
        contents = pod.contents()
        assert "table inet ztun" in contents.ruleset
        assert all("0x111" in rules for rules in contents.rules)
        again.write()
        again.wait_state(WEB, "")
    assert pod.contents() == before


@pytest.mark.parametrize("step", [ROUTES4, RULES])
def test_killed_while_a_pod_comes_that_is_not_wanted_any_more(
    network: PodNetwork, agents: Agents, tmp_path: Path, step: str
) -> None:
    """No proxy is needed to undo what was done."""
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent = agents.start(environment=arranged(tmp_path / "tools", step, "after"))
    agent.write(pod_document("web", pod.name))
    with ZdsProxy(agent.uds):
        killed(agent)
    assert pod.contents() != before
    agent.write()
    again = agents.start()
    again.wait_state(WEB, "")
    assert pod.contents() == before


@pytest.mark.parametrize(
    ("step", "how"), [(RULES, "before"), (RULES, "after"), (ROUTES4, "after"), (ROUTES6, "after")]
)
def test_killed_while_a_pod_goes(
    network: PodNetwork, agents: Agents, tmp_path: Path, step: str, how: str
) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    first = agents.start()
    first.write(pod_document("web", pod.name))
    with ZdsProxy(first.uds):
        first.wait_state(WEB, "enrolled")
    # Rules are loaded by the same commands, so only the second agent is killed: after it has verified them.
    first.stop()
    environment = arranged(tmp_path / "tools", step, how)
    (tmp_path / "tools" / "done").mkdir()
    second = agents.start(environment=environment)
    with ZdsProxy(second.uds):
        second.wait_state(WEB, "enrolled")
        (tmp_path / "tools" / "done").rmdir()
        second.write()
        killed(second)
    third = agents.start()
    with ZdsProxy(third.uds) as proxy:
        proxy.ready()
        third.wait_state(WEB, "")
        assert proxy.namespaces == {}
    assert pod.contents() == before


def test_rules_that_cannot_be_loaded_leave_nothing(
    network: PodNetwork, agents: Agents, tmp_path: Path
) -> None:
    """The command says why and nothing is left; it works the next time."""
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent = agents.start(environment=arranged(tmp_path / "tools", RULES, "fails"))
    with ZdsProxy(agent.uds) as proxy:
        failed = agent.ask("enroll", pod.name, "--pod", WEB)
        assert failed.returncode == 1
        assert "no such luck" in failed.stderr
        assert was_run(tmp_path / "tools")
        assert pod.contents() == before
        assert agent.enrolled() == {}
        assert [type(one) for one in proxy.requests[1:]] == [AddWorkload, DelWorkload]
        assert agent.ask("enroll", pod.name, "--pod", WEB).returncode == 0


def test_rules_that_cannot_be_unloaded_are_tried_again(
    network: PodNetwork, agents: Agents, tmp_path: Path
) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    environment = arranged(tmp_path / "tools", RULES, "fails")
    (tmp_path / "tools" / "done").mkdir()
    agent = agents.start(environment=environment)
    with ZdsProxy(agent.uds):
        agent.write(pod_document("web", pod.name))
        agent.wait_state(WEB, "enrolled")
        (tmp_path / "tools" / "done").rmdir()
        agent.write()
        eventually(lambda: was_run(tmp_path / "tools"), "it has failed once")
        agent.wait_state(WEB, "")
    assert pod.contents() == before
    assert any("no such luck" in str(line) for line in agent.lines())


def test_an_agent_that_ends_leaves_its_pods_captured(network: PodNetwork, agents: Agents) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent = agents.start()
    agent.write(pod_document("web", pod.name))
    with ZdsProxy(agent.uds) as proxy:
        agent.wait_state(WEB, "enrolled")
        captured = pod.contents()
        agent.signal(signal.SIGTERM)
        assert agent.wait() == 0
        assert proxy.ended.wait(30)
        assert proxy.of(DelWorkload) == []
    assert pod.contents() == captured
    assert not agent.uds.exists()
    assert not agent.control.exists()
    undone = ztun("unenroll", "--all", "--state", agent.state, "--control", agent.control)
    assert (undone.returncode, undone.stdout) == (0, f"{WEB} is out of the mesh\n"), undone.stderr
    assert pod.contents() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_proxy_outlives_its_agent(network: PodNetwork, agents: Agents, number: signal.Signals) -> None:
    """It connects again to the next one, which tells it of everybody before it says that this was all."""
    pods = {name: network.lonely_pod(name) for name in ("one", "two")}
    first = agents.start()
    first.write(*(pod_document(name, pod.name) for name, pod in pods.items()))
    with ZdsProxy(first.uds) as proxy:
        for name in pods:
            first.wait_state(f"default/{name}", "enrolled")
        captured = {name: pod.contents() for name, pod in pods.items()}
        first.signal(number)
        first.wait()
        assert proxy.ended.wait(30)
    second = agents.start()
    with ZdsProxy(second.uds) as proxy:
        proxy.ready()
        kinds = [type(one) for one in proxy.requests]
        told = proxy.requests[: kinds.index(SnapshotSent)]
        # the agent's loop may be there at the same moment: what is heard twice does no harm
        assert {one.name for one in told if isinstance(one, AddWorkload)} == set(pods)
        assert {type(one) for one in told} == {AddWorkload}
        for name, pod in pods.items():
            second.wait_state(f"default/{name}", "enrolled")
            assert pod.contents() == captured[name]


def test_who_has_gone_while_no_agent_was_there(network: PodNetwork, agents: Agents) -> None:
    pods = {name: network.lonely_pod(name) for name in ("deleted", "replaced", "unwanted", "stays")}
    first = agents.start()
    before = pods["unwanted"].contents()
    first.write(*(pod_document(name, pod.name) for name, pod in pods.items()))
    with ZdsProxy(first.uds):
        for name in pods:
            first.wait_state(f"default/{name}", "enrolled")
        captured = pods["stays"].contents()
    first.stop()
    for name in ("deleted", "replaced"):
        run("ip", "netns", "del", pods[name].name)
    run("ip", "netns", "add", pods["replaced"].name)
    pods["replaced"].run("ip", "link", "set", "lo", "up")
    first.write(*(pod_document(name, pod.name) for name, pod in pods.items() if name != "unwanted"))
    second = agents.start()
    with ZdsProxy(second.uds) as proxy:
        proxy.ready()
        for name in ("stays", "replaced"):
            second.wait_state(f"default/{name}", "enrolled")
        second.wait_state("default/unwanted", "")
        second.wait_state("default/deleted", "waiting")
        assert proxy.names == {"default/stays", "default/replaced"}
    assert pods["stays"].contents() == captured
    assert pods["unwanted"].contents() == before
    assert "table inet ztun" in pods["replaced"].contents().ruleset


def test_a_namespace_that_cannot_be_opened_for_now_is_kept(
    network: PodNetwork, agents: Agents, tmp_path: Path
) -> None:
    """The proxy is not to drop a pod that is still there: it is told to keep it."""
    pod = network.lonely_pod("web")
    link = tmp_path / "loop"
    link.symlink_to(pod.path)
    first = agents.start()
    first.write(pod_document("web", str(link)))
    with ZdsProxy(first.uds):
        first.wait_state(WEB, "enrolled")
        uid = first.enrolled()[WEB]["uid"]
    first.stop()
    link.unlink()
    link.symlink_to(link.name)
    second = agents.start()
    with ZdsProxy(second.uds) as proxy:
        proxy.ready()
        assert proxy.requests[0] == KeepWorkload(uid)
        assert "symbolic links" in second.enrolled()[WEB]["problem"]
        link.unlink()
        link.symlink_to(pod.path)
        second.wait_state(WEB, "enrolled")
        assert proxy.names == {WEB}


def test_a_state_that_is_lost_is_read_from_the_rules(network: PodNetwork, agents: Agents) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    first = agents.start()
    first.write(pod_document("web", pod.name))
    with ZdsProxy(first.uds):
        first.wait_state(WEB, "enrolled")
        captured = pod.contents()
    first.stop()
    for path in first.state.iterdir():
        path.unlink()
    second = agents.start()
    with ZdsProxy(second.uds) as proxy:
        proxy.ready()
        assert proxy.names == {WEB}
        second.wait_state(WEB, "enrolled")
        assert pod.contents() == captured
        second.write()
        second.wait_state(WEB, "")
    assert pod.contents() == before


def test_a_second_agent_is_refused(agents: Agents) -> None:
    first = agents.start()
    other = AgentProcess(first.directory)
    other.spawn()
    assert other.wait() == 1
    assert "another process uses the state" in other.log_tail()
    elsewhere = AgentProcess(first.directory, "--state", first.directory / "elsewhere")
    elsewhere.spawn()
    assert elsewhere.wait() == 1
    assert "somebody listens there already" in elsewhere.log_tail()
    assert first.enrolled() == {}


def test_an_unreadable_state_is_not_overwritten(agents: Agents) -> None:
    agent = AgentProcess(agents.directory)
    agent.state.mkdir()
    (agent.state / "enrolments.json").write_text("{")
    agent.spawn()
    assert agent.wait() == 1
    assert "enrolments.json" in agent.log_tail()
    assert (agent.state / "enrolments.json").read_text() == "{"
    assert not agent.uds.exists()
