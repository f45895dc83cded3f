"""``ztun agent`` and the commands that talk to it, as the processes that operators run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.peers.process import Process
from tests.peers.traffic import ROOT
from tests.ztun.agent.pods import Pod, eventually

COMMAND_SECONDS = 60.0


def ztun(*arguments: str | Path, pod: Pod | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, inside a namespace if one is given."""
    inside = ["ip", "netns", "exec", pod.name] if pod is not None else []
    return subprocess.run(
        [*inside, sys.executable, "-m", "ztun", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
        cwd=ROOT,
    )


class AgentProcess(Process):
    """An agent with everything of its own below ``directory``, which may be used again by the next one."""

    def __init__(self, directory: Path, *options: str | Path, environment: Mapping[str, str] | None = None):
        self.directory = directory
        self.documents = directory / "pods"
        self.documents.mkdir(exist_ok=True, parents=True)
        self.uds = directory / "zds.sock"
        self.control = directory / "control.sock"
        self.state = directory / "state"
        argv: list[str | Path] = [sys.executable, "-m", "ztun", "agent", "--directory", self.documents]
        argv += ["--uds", self.uds, "--control", self.control, "--state", self.state, "--log-format", "json"]
        super().__init__(
            "agent",
            [*argv, *options],
            directory / "agent.log",
            ready=self._answers,
            environment={"PYTHONPATH": str(ROOT), **(environment or {})},
        )

    def _answers(self) -> bool:
        try:
            self.enrolled()
        except AssertionError:
            return False
        return True

    def ask(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this agent."""
        return ztun(*arguments, "--control", self.control)

    def enrolled(self) -> dict[str, dict[str, Any]]:
        """What ``ztun enrolled`` shows, by NAMESPACE/NAME; without the cost of a process."""
        from ztun.agent.control import ask
        from ztun.errors import ZtunError

        try:
            answer = ask(self.control, {"command": "list"})
        except ZtunError as error:
            raise AssertionError(str(error)) from error
        return {f"{one['namespace']}/{one['pod']}": one for one in answer["enrolments"]}

    def state_of(self, name: str) -> str:
        """The state of one pod, empty when it is not there."""
        return str(self.enrolled().get(name, {}).get("state", ""))

    def wait_state(self, name: str, state: str) -> None:
        """Wait for the state of one pod."""
        eventually(lambda: self.state_of(name) == state, f"{name} is {state or 'gone'}: {self.enrolled()}")

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        found = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def write(self, *pods: Mapping[str, Any], name: str = "pods.yaml") -> None:
        """Replace a file of documents; none removes it."""
        path = self.documents / name
        if not pods:
            path.unlink(missing_ok=True)
            return
        draft = self.directory / "draft"
        draft.write_text(yaml.safe_dump_all(pods, sort_keys=False))
        draft.replace(path)


def pod_document(name: str, netns: str = "", **metadata: Any) -> dict[str, Any]:
    """A Pod in the namespace default, whose network namespace is ``netns``."""
    annotations = {"ztun.io/netns": netns} if netns else {}
    given = metadata.pop("annotations", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations | given, **metadata},
        "spec": {"serviceAccountName": name, "nodeName": "node"},
    }
