"""``ztun enroll``, ``unenroll`` and ``enrolled`` as users type them, right and wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.ztun.agent.pods import PodNetwork
from tests.ztun.agent.processes import AgentProcess, pod_document
from tests.ztun.agent.zds_proxy import ZdsProxy
from ztun.agent.enrolments import FILE
from ztun.cli.app import app


@pytest.fixture
def proxy(agent: AgentProcess) -> Iterator[ZdsProxy]:
    with ZdsProxy(agent.uds) as proxy:
        yield proxy.ready()


@pytest.mark.netns
def test_a_namespace_in_and_out(network: PodNetwork, agent: AgentProcess, proxy: ZdsProxy) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    done = agent.ask("enroll", pod.name, "--pod", "shop/web", "--service-account", "seller", "--no-dns")
    assert (done.returncode, done.stdout) == (0, f"shop/web is in the mesh ({pod.path})\n"), done.stderr
    assert "dport 53" not in pod.contents().ruleset
    assert proxy.names == {"shop/web"}
    listed = agent.ask("enrolled", "-o", "json")
    (shown,) = json.loads(listed.stdout)
    assert (shown["state"], shown["serviceAccount"], shown["origin"]) == ("enrolled", "seller", "command")
    assert "seller" in agent.ask("enrolled").stdout
    once_more = agent.ask("enroll", str(pod.path), "--pod", "shop/web", "--service-account", "seller")
    assert once_more.returncode == 0, once_more.stderr
    assert "dport 53" in pod.contents().ruleset
    assert len(proxy.requests) == 2  # the snapshot's end and one pod: nothing was told twice
    (agent.directory / "another-name").symlink_to(pod.path)
    out = agent.ask("unenroll", agent.directory / "another-name")
    assert (out.returncode, out.stdout) == (0, "shop/web is out of the mesh\n"), out.stderr
    assert pod.contents() == before
    assert proxy.names == set()
    assert agent.ask("enrolled", "-o", "json").stdout.strip() == "[]"


@pytest.mark.netns
def test_what_is_not_free_is_refused_and_stays_as_it_is(
    network: PodNetwork, agent: AgentProcess, proxy: ZdsProxy
) -> None:
    one, two = network.lonely_pod("one"), network.lonely_pod("two")
    untouched = two.contents()
    assert agent.ask("enroll", one.name, "--pod", "shop/web").returncode == 0
    captured = one.contents()
    for arguments, reason in (
        ((one.name, "--pod", "shop/other"), f"{one.path} is enrolled as shop/web"),
        ((two.name, "--pod", "shop/web"), "shop/web is enrolled with"),
        ((one.name, "--pod", "shop/web", "--service-account", "other"), "shop/web is enrolled with"),
        (("nowhere", "--pod", "shop/new"), "there is no network namespace /run/netns/nowhere"),
        (("/dev/null", "--pod", "shop/new"), "/dev/null is not a network namespace"),
        ((f"/proc/{agent.pid}/ns/net", "--pod", "shop/new"), "of the agent itself"),
    ):
        refused = agent.ask("enroll", *arguments)
        assert refused.returncode == 1
        assert reason in refused.stderr
        assert "hint: " in refused.stderr
    assert agent.ask("unenroll", two.name).returncode == 1
    assert (one.contents(), two.contents()) == (captured, untouched)
    assert proxy.names == {"shop/web"}
    assert list(agent.enrolled()) == ["shop/web"]


@pytest.mark.netns
def test_a_pod_that_was_taken_out_by_hand_stays_out(
    network: PodNetwork, agent: AgentProcess, proxy: ZdsProxy
) -> None:
    """Until its document is gone and comes anew, or it is enrolled by hand."""
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent.write(pod_document("web", pod.name))
    agent.wait_state("default/web", "enrolled")
    assert agent.ask("unenroll", pod.name).returncode == 0
    agent.write(pod_document("web", pod.name), pod_document("other", "elsewhere"))
    agent.wait_state("default/other", "waiting")
    assert pod.contents() == before
    assert list(agent.enrolled()) == ["default/other"]
    agent.write(pod_document("other", "elsewhere"))
    agent.wait_state("default/web", "")
    while agent.state_of("default/web") == "":
        agent.write(pod_document("other", "elsewhere"))
        agent.write(pod_document("web", pod.name))
    agent.wait_state("default/web", "enrolled")
    assert proxy.names == {"default/web"}


@pytest.mark.netns
def test_a_pod_that_was_brought_back_by_hand_stays_out_after_that(
    network: PodNetwork, agent: AgentProcess, proxy: ZdsProxy
) -> None:
    """It is a command's now, and its document wants it still."""
    pod = network.lonely_pod("web")
    before = pod.contents()
    agent.write(pod_document("web", pod.name))
    agent.wait_state("default/web", "enrolled")
    for command in (
        ("unenroll", pod.name),
        ("enroll", pod.name, "--pod", "default/web"),
        ("unenroll", pod.name),
    ):
        done = agent.ask(*command)
        assert done.returncode == 0, done.stderr
    agent.write(pod_document("web", pod.name), pod_document("other", "elsewhere"))
    agent.wait_state("default/other", "waiting")
    assert list(agent.enrolled()) == ["default/other"]
    assert pod.contents() == before


@contextmanager
def unwritable(agent: AgentProcess) -> Iterator[None]:
    """The agent cannot write its state, root or not."""
    obstacle = agent.state / f"{FILE}.new"
    obstacle.mkdir()
    try:
        yield
    finally:
        obstacle.rmdir()


@pytest.mark.netns
def test_what_failed_because_of_the_state_is_not_done_later(
    network: PodNetwork, agent: AgentProcess, proxy: ZdsProxy
) -> None:
    inside, outside, held = (network.lonely_pod(name) for name in ("in", "out", "held"))
    agent.write(pod_document("held", held.name))
    agent.wait_state("default/held", "enrolled")
    assert agent.ask("unenroll", held.name).returncode == 0
    assert agent.ask("enroll", inside.name, "--pod", "shop/in").returncode == 0
    before = [pod.contents() for pod in (inside, outside, held)]
    with unwritable(agent):
        for command in (
            ("enroll", outside.name, "--pod", "shop/out"),
            ("enroll", held.name, "--pod", "default/held"),
            ("unenroll", inside.name),
            ("unenroll", "--all"),
        ):
            failed = agent.ask(*command)
            assert failed.returncode == 1
            assert "the state cannot be written" in failed.stderr
            assert {name: one["state"] for name, one in agent.enrolled().items()} == {"shop/in": "enrolled"}
    more = network.lonely_pod("more")
    agent.write(pod_document("held", held.name), pod_document("more", more.name))
    agent.wait_state("default/more", "enrolled")  # so it has looked at everybody
    assert sorted(agent.enrolled()) == ["default/more", "shop/in"]
    assert [pod.contents() for pod in (inside, outside, held)] == before


@pytest.mark.netns
def test_without_a_proxy_nothing_is_left_of_an_attempt(
    network: PodNetwork, agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = network.lonely_pod("web")
    before = pod.contents()
    failed = agent.ask("enroll", pod.name, "--pod", "shop/web")
    assert failed.returncode == 1
    assert "no proxy is connected" in failed.stderr
    assert "INPOD_UDS" in failed.stderr
    assert pod.contents() == before
    assert agent.enrolled() == {}


@pytest.mark.netns
def test_everybody_out(network: PodNetwork, agent: AgentProcess, proxy: ZdsProxy) -> None:
    pods = {name: network.lonely_pod(name) for name in ("one", "two")}
    before = [pod.contents() for pod in pods.values()]
    for name, pod in pods.items():
        assert agent.ask("enroll", pod.name, "--pod", f"shop/{name}").returncode == 0
    done = agent.ask("unenroll", "--all")
    assert sorted(done.stdout.splitlines()) == ["shop/one is out of the mesh", "shop/two is out of the mesh"]
    assert [pod.contents() for pod in pods.values()] == before
    assert agent.ask("unenroll", "--all").stdout == ""


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the namespace and --pod"),
        (["web"], "name the namespace and --pod"),
        (["--pod", "shop/web"], "name the namespace and --pod"),
        (["web", "--pod", "web"], "expected NAMESPACE/NAME"),
        (["web", "--pod", "Shop/web"], "is not a name"),
        (["..", "--pod", "shop/web"], "does not name one network namespace"),
        (["/proc/self/ns/net", "--pod", "shop/web"], "does not name one network namespace"),
        (["a\nb", "--pod", "shop/web"], "does not name one network namespace"),
        (["--self", "web"], "--self takes neither"),
        (["--self", "--pod", "shop/web"], "--self takes neither"),
        (["web", "--pod", "shop/web", "--proxy-uid", "7"], "--proxy-uid goes with --self"),
    ],
)
def test_wrong_ways_to_enroll(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(app, ["enroll", *arguments])
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())


@pytest.mark.unit
@pytest.mark.parametrize("arguments", [[], ["web", "--all"], ["web", "--self"], ["--all", "--self"]])
def test_wrong_ways_to_unenroll(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["unenroll", *arguments])
    assert result.exit_code == 2
    assert "name one namespace, or give --all or --self" in " ".join(result.output.split())


@pytest.mark.unit
@pytest.mark.parametrize("command", ["agent", "enroll", "unenroll", "enrolled"])
def test_help_fits_a_screen(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 40


@pytest.mark.unit
@pytest.mark.parametrize("command", [["enroll", "web", "--pod", "a/b"], ["unenroll", "web"], ["enrolled"]])
def test_without_an_agent(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from ztun.cli.app import main

    assert main([*command, "--control", str(tmp_path / "none.sock")]) == 1
    printed = capsys.readouterr().err
    assert "no agent answers" in printed
    assert "hint: start one with 'ztun agent'" in printed


@pytest.mark.unit
def test_without_an_agent_there_is_nobody_to_let_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ztun.cli.app import main

    assert main(["unenroll", "--all", "--control", str(tmp_path / "none"), "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
