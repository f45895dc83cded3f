"""``docker-compose up``, and the one command after it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.image import ROOT
from tests.e2e.left_overs import OWNER, PROJECT_PREFIX

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]  # with the build of the image on a new machine

COMMAND_SECONDS = 600.0
FILE = ROOT / "compose" / "docker-compose.yaml"


def compose_command() -> list[str]:
    """Version 1, else version 2, else nothing."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    probe = ("docker", "compose", "version")
    if shutil.which("docker") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    return []


class Composed:
    """The topology, under a project name of its own."""

    def __init__(self, image: str) -> None:
        self._command = [
            *compose_command(),
            "--file",
            str(FILE),
            "--project-name",
            f"{PROJECT_PREFIX}{OWNER}",
        ]
        self._environment = {**os.environ, "ZTUN_IMAGE": image}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one compose command; what it writes is kept together."""
        return subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
        )

    def expect(self, *arguments: str) -> str:
        """Run a command that has to succeed; its failure shows what the containers have written."""
        done = self.run(*arguments)
        if done.returncode != 0:
            logs = self.run("logs", "--no-color", "--tail", "30").stdout
            pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{logs}")
        return done.stdout


@pytest.fixture(scope="module")
def composed(image: str) -> Iterator[Composed]:
    if not compose_command():
        pytest.skip("neither docker-compose nor docker compose is installed")
    composed = Composed(image)
    try:
        composed.expect("up", "--detach")
        yield composed
    finally:
        composed.run("--profile", "check", "down", "--volumes", "--timeout", "1")


def test_every_example_gives_its_answer_in_both_modes(composed: Composed) -> None:
    """Clients call by name from pods of a node and from beside a sidecar; the exit status says whether all is right."""
    table = composed.expect("run", "--rm", "check")
    assert "rows of the examples of routing are right in both modes" in table
    assert "telnet-client-foo" in table


def test_a_telnet_in_a_captured_container_is_answered(composed: Composed) -> None:
    """What a person types, in a container whose only neighbour is a sidecar."""
    output = composed.expect("exec", "-T", "telnet-client-sidecar", "bash", "-c", _TYPED)
    assert "hello test" in output


_TYPED = """
coproc telnet echo-server.default.svc.cluster.local 19000
while read -r said <&"${COPROC[0]}"; do
    case $said in
        Escape*) echo test >&"${COPROC[1]}" ;;
        hello*) echo "$said"; kill "$COPROC_PID"; exit 0 ;;
    esac
done
exit 1
"""


_STATUS = """
for place in /proc/[0-9]*; do
    [[ $(tr '\\0' ' ' <$place/cmdline) == /opt/ztun/bin/python* ]] && cat $place/status && exit
done
exit 1
"""


def test_nobody_has_more_powers_than_the_file_says(composed: Composed) -> None:
    """What does not capture is no root and has no capabilities; what does has those it needs, and nothing may write."""
    for service, uid, capabilities in (
        ("waypoint", "1337", "0000000000000000"),
        ("ingressgateway-1", "1337", "0000000000000000"),
        ("ca", "1337", "0000000000000000"),
        ("sidecar", "1337", "0000000000001000"),  # CAP_NET_ADMIN
        ("proxy-a", "0", "0000000000201000"),  # and CAP_SYS_ADMIN
    ):
        status = composed.expect("exec", "-T", service, "bash", "-c", _STATUS)
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert found["Uid"].split()[1] == uid, service
        assert found["CapEff"] == capabilities, service
        assert found["NoNewPrivs"] == "1", service
        assert composed.run("exec", "-T", service, "touch", "/opt/ztun/bin/x").returncode != 0
