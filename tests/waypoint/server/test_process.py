"""``waypoint run`` as operators start and stop it: which pod it is, what it says when it cannot, how it ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.traffic import ROOT
from tests.waypoint.server.ground import WAYPOINT_LABELS, Ground, ask, gateway, logged, records, sample
from ztun.lab.client import talk

pytestmark = pytest.mark.net

ENTRY = ("telnet-client", "echo-server-2")
SECONDS = 30.0  # for a process that ends by itself


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as ground:
        yield ground


def run(ground: Ground, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command with the usual options, which ``arguments`` may repeat; it is expected to end."""
    ground.write()
    command = [sys.executable, "-m", "waypoint", "run", "--name", "waypoint", "--namespace", "default"]
    return subprocess.run(
        [*command, "--config", ground.config, "--ca", ground.authority.directory, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_an_engine_that_is_not_installed_is_named(ground: Ground) -> None:
    ended = run(ground, "--engine", "nonsense")
    assert ended.returncode == 1
    assert "no routing engine is called 'nonsense'" in ended.stderr
    assert "ambient, sidecar" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_several_pods_must_be_told_apart(ground: Ground) -> None:
    ground.pods.append(ground.pod("waypoint-b", "middle", **WAYPOINT_LABELS))
    ended = run(ground)
    assert ended.returncode == 1
    assert "default/waypoint, default/waypoint-b" in ended.stderr
    assert "--workload" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--admin-port", "0"), 2, "--admin-port"),
        (("--ca", "/nonexistent"), 1, "--ca"),
        (("--config", "/nonexistent", "--engine", "x"), 1, "no routing engine"),
    ],
)
def test_a_wrong_option_is_a_sentence(
    ground: Ground, arguments: tuple[str, ...], status: int, text: str
) -> None:
    ended = run(ground, *arguments)
    assert ended.returncode == status
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.asyncio
async def test_each_pod_of_a_waypoint_has_a_process_of_its_own(ground: Ground) -> None:
    second = ground.pod("waypoint-b", "middle", **WAYPOINT_LABELS)
    ground.pods.append(second)
    ground.waypoint_options = ["--workload", "default/waypoint"]
    ground.start()
    other = ground.waypoint_process("--workload", "default/waypoint-b", name="other")
    ground.spawn(other)
    await asyncio.to_thread(other.wait_ready)
    both = (ground.waypoint, other)
    while not all(sample(one, "istio_tcp_connections_opened_total", reporter="waypoint") for one in both):
        assert await ask(ground.entries[ENTRY]) == "hello-2 test"


@pytest.mark.asyncio
async def test_it_waits_for_its_pod_and_says_what_is_missing(ground: Ground) -> None:
    ground.pods.remove(ground.waypoint_pod)
    ground.write()
    waypoint = ground.waypoint_process()
    ground.spawn(waypoint)
    said = await logged(waypoint, lambda one: "the mesh has no pod" in str(one.get("message")))
    assert "gateway.networking.k8s.io/gateway-name: waypoint" in said["message"]
    ground.pods.append(ground.waypoint_pod)
    ground.write()
    await asyncio.to_thread(waypoint.wait_ready)


@pytest.mark.asyncio
async def test_a_binding_that_tells_no_destination_is_explained(ground: Ground) -> None:
    ground.gateway = gateway(**{"ambient.istio.io/waypoint-inbound-binding": "NONE/15088"})
    ground.write()
    waypoint = ground.waypoint_process()
    ground.spawn(waypoint)
    said = await logged(waypoint, lambda one: one.get("error.code") == "inbound_binding")
    assert "PROXY/<port>" in said["error.hint"]


@pytest.mark.asyncio
async def test_a_drain_ends_at_its_deadline(ground: Ground) -> None:
    ground.environment = {"CONNECTION_TERMINATION_DEADLINE": "100ms"}
    ground.start()
    async with talk(*ground.entries[ENTRY]) as conversation:
        assert await conversation.ask("before") == "hello-2 before"
        ground.waypoint.signal(signal.SIGTERM)
        assert await conversation.closed()
    assert await asyncio.to_thread(ground.waypoint.wait) == 0
    assert any(one.get("connections_cut") == 1 for one in records(ground.waypoint))
