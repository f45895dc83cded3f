from __future__ import annotations

import asyncio
import functools
import ipaddress
from pathlib import Path

import pytest

from ztun.errors import ConfigError
from ztun.lab import machine
from ztun.lab.machine import Machine, Pods, read_plan
from ztun.sources.watching import Watch

pytestmark = pytest.mark.unit

PODS = ipaddress.IPv4Network("10.9.1.0/24")
POD = """
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec: {nodeName: node-a}
status: {podIP: ADDRESS}
"""


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(text)


def pod(name: str, ip: str) -> str:
    return POD.replace("NAME", name).replace("ADDRESS", ip)


def test_pods_are_found_in_every_file_below_the_directory(tmp_path: Path) -> None:
    write(tmp_path, "mesh/pods.yaml", pod("first", "10.9.1.10"))
    write(tmp_path, "rules/canary.yaml", pod("second", "10.9.1.31"))
    plan = read_plan(tmp_path, PODS)
    assert [(one.name, one.node, one.ip) for one in plan.pods] == [
        ("first", "node-a", "10.9.1.10"),
        ("second", "node-a", "10.9.1.31"),
    ]


def test_a_pod_that_is_described_again_is_the_one_described_last(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", pod("first", "10.9.1.10"))
    write(tmp_path, "b.yaml", pod("first", "10.9.1.20"))
    assert [one.ip for one in read_plan(tmp_path, PODS).pods] == ["10.9.1.20"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: [", "pods.yaml:1"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "pods.yaml:3"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec: {}\n", "no spec.nodeName"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, "pods.yaml", text)
    with pytest.raises(ConfigError, match=says):
        read_plan(tmp_path, PODS)


@pytest.mark.asyncio
async def test_documents_that_cannot_be_watched_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory may come later, and the kernel may have no watch left."""
    looked = asyncio.Semaphore(0)

    async def fit(pods: Pods) -> None:
        looked.release()

    monkeypatch.setattr(Pods, "fit", fit)
    monkeypatch.setattr(machine, "Watch", functools.partial(Watch, poll_seconds=0.01))
    pods = Pods(Machine("node-a", tmp_path / "later", PODS, tmp_path, tmp_path, tmp_path))
    following = asyncio.ensure_future(pods.follow())
    for _ in range(4):
        await looked.acquire()
    following.cancel()
    await asyncio.wait([following])
    assert following.cancelled()
    assert capsys.readouterr().err.count("cannot be watched") == 1
