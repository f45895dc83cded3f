"""The demo in network namespaces, with the real executables and the command of the examples."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ztun.lab import netns
from ztun.lab.demo import chosen_fabric, instructions, plan_mesh_of_examples
from ztun.lab.lab import Lab
from ztun.lab.netns import netns_fabric, why_not
from ztun.lab.telnet import typed

REASON = why_not()
captured = pytest.mark.skipif(bool(REASON), reason=f"no network namespaces: {REASON}")
DEMO_SECONDS = 240.0  # far more than a run takes; a demo that hangs does not hold up the tests


def left(prefix: str) -> list[str]:
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if name.startswith(prefix)]


@pytest.mark.netns
@captured
@pytest.mark.timeout(DEMO_SECONDS)
def test_the_check_is_right_in_namespaces_too() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "ztun", "demo", "--check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    printed, _ = demo.communicate(timeout=DEMO_SECONDS)
    assert demo.returncode == 0, printed
    assert "Nodes and pods are network namespaces" in printed
    assert "All 14 rows are right" in printed
    assert len(re.findall(r"-> telnet echo-server(?:-2)?\.default\.svc\.cluster\.local", printed)) == 10
    assert "refused: mutual TLS is STRICT" in printed
    assert "nothing but TLS 1.3" in printed
    table = re.findall(r"^│ (\w+) +│ ((?:Not s|S)upported) +│ ((?:Not s|S)upported) +│ ok │$", printed, re.M)
    assert [name for name, sidecar, ambient in table if (sidecar, ambient) == ("Supported",) * 2] == [
        "gateways",
        "weights",
    ]
    assert len(table) == 6
    assert not left(f"ztun-{demo.pid}-")


@pytest.mark.netns
@captured
@pytest.mark.asyncio
async def test_what_is_printed_to_be_typed_works(tmp_path: Path) -> None:
    with netns_fabric() as fabric:
        async with Lab(plan_mesh_of_examples(fabric), fabric, tmp_path / "lab").running() as lab:
            text = instructions(lab)
            telnets = [line for line in text.splitlines() if ".svc.cluster.local 19000" in line]
            assert len(telnets) == 6
            for line in telnets[:2]:
                async with typed(shlex.split(line)) as conversation:
                    answer = await conversation.ask("test")
                    assert answer == ("hello-2 test" if "echo-server-2" in line else "hello test")
            asked = [
                line for line in text.splitlines() if "ztun connections" in line or "ztun enrolled" in line
            ]
            assert len(asked) == 3
            for line in asked:
                command = shlex.split(line, comments=True)
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert (done.returncode, done.stderr) == (0, ""), line


@pytest.mark.netns
@captured
def test_an_interrupt_leaves_nothing() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "ztun", "demo", "--fabric", "netns"], stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "Ctrl-C" in line:
            break
    assert len(left(f"ztun-{demo.pid}-")) == 10
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert not left(f"ztun-{demo.pid}-")


@pytest.mark.net
def test_auto_says_why_it_takes_loopback_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns.os, "geteuid", lambda: 65534)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=120)
        with chosen_fabric(console, "auto") as fabric:
            assert fabric.name == "loopback"
    said = "Nodes and pods are loopback addresses, for network namespaces are not to be had: they need root."
    assert console.export_text().strip() == said


@pytest.mark.net
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns.os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert why_not() == "the command ip is not installed (package iproute2)"
