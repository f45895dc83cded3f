"""The demo's mesh, with the real executables."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ztun.lab import check as checks
from ztun.lab.demo import instructions, plan_mesh_of_examples, table_of
from ztun.lab.fabric import loopback_fabric
from ztun.lab.lab import Lab
from ztun.lab.process import LabError, Program
from ztun.lab.topology import Echo, MeshPlan

pytestmark = [pytest.mark.net, pytest.mark.asyncio]


async def rows_of(plan_changed: object, directory: Path) -> list[checks.Row]:
    with loopback_fabric() as fabric:
        plan = plan_mesh_of_examples(fabric)
        if callable(plan_changed):
            plan = plan_changed(plan)
        async with Lab(plan, fabric, directory, observed=True).running() as lab:
            return [row async for row in checks.check(lab)]


async def test_every_row_of_the_check_is_right(tmp_path: Path) -> None:
    rows = await rows_of(None, tmp_path)
    assert [row.faults for row in rows] == [()] * len(rows)
    assert len(rows) == len(checks.CALLS) + 4
    assert {row.wire.partition("\n")[0] for row in rows if row.source} == {"TLS 1.3"}
    assert rows[0].source == "spiffe://cluster.local/ns/default/sa/default"
    assert rows[0].destination == "spiffe://cluster.local/ns/default/sa/echo-server"
    assert [row.answer for row in rows if "policy" in row.answer] == [
        "open connection cut by policy",
        "denied by policy",
    ]


async def test_a_server_that_answers_wrongly_makes_its_rows_wrong(tmp_path: Path) -> None:
    def lying(plan: MeshPlan) -> MeshPlan:
        return dataclasses.replace(
            plan,
            pods=tuple(
                dataclasses.replace(pod, echoes=(Echo((9000,), "bye"),))
                if pod.owner == "echo-server-2"
                else pod
                for pod in plan.pods
            ),
        )

    rows = await rows_of(lying, tmp_path)
    wrong = [row for row in rows if row.faults]
    assert {row.target.partition(".")[0] for row in wrong} == {"echo-server-2"}
    assert all("expected 'hello-2 " in row.faults[0] for row in wrong)
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    for columns in (80, 200):
        console.print(table_of(rows, columns))
        assert console.export_text().count("wrong") == len(wrong)
    console.file.close()


async def test_a_program_that_ends_by_itself_ends_the_lab_with_its_log(tmp_path: Path) -> None:
    with loopback_fabric() as fabric:
        lab = Lab(plan_mesh_of_examples(fabric), fabric, tmp_path)
        with pytest.raises(LabError, match="node-b ended by itself") as ended:
            async with lab.running():
                pid = lab.pid("node-b")
                assert pid is not None
                while "proxy started" not in (tmp_path / "logs" / "node-b.log").read_text():
                    await lab.dump(
                        "node-b"
                    )  # lines are written by a thread, a little later than the proxy is ready
                os.kill(pid, signal.SIGKILL)
                await asyncio.Event().wait()
        assert "proxy started" in str(ended.value)
        assert ended.value.hint.endswith("node-b.log")


async def test_a_program_that_does_not_start_is_shown_with_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such mesh')"]
    program = Program("broken", command, tmp_path / "broken.log")
    await program.start()

    async def never() -> bool:
        return False

    with pytest.raises(LabError, match=r"(?s)broken ended with 1 before it was ready.*no such mesh"):
        await program.until(never, "ready")
    await program.stop()


async def test_two_labs_at_once_have_addresses_of_their_own() -> None:
    with loopback_fabric() as first, loopback_fabric() as second:
        assert first.block != second.block


async def test_the_instructions_name_addresses_that_answer(tmp_path: Path) -> None:
    from ztun.lab.client import talk

    with loopback_fabric() as fabric:
        async with Lab(plan_mesh_of_examples(fabric), fabric, tmp_path).running() as lab:
            typed = [line.split() for line in instructions(lab).splitlines() if line.startswith("  nc ")]
            assert len(typed) == 6
            for _, ip, port, *_ in typed:
                async with talk(ip, int(port)) as conversation:
                    answer = await conversation.ask("test")
                    assert answer in ("hello test", "hello-2 test")


def children_of(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_the_demo_stops_everything_when_it_is_told_to(number: signal.Signals, code: int) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "ztun", "demo", "--fabric", "loopback"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    printed = ""
    for line in demo.stdout:
        printed += line
        if "Ctrl-C" in line:
            break
    directory = Path(printed.partition("YAML in ")[2].partition(",")[0]).parent
    assert directory.is_dir()
    children = children_of(demo.pid)
    assert len(children) == 4
    if number == signal.SIGINT:
        os.killpg(demo.pid, number)  # as a terminal does it
    else:
        demo.send_signal(number)
    _, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (code, "")
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not directory.exists()


async def test_the_check_ends_with_0_and_prints_its_table() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "ztun", "demo", "--fabric", "loopback", "--check"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (demo.returncode, demo.stderr) == (0, "")
    assert "All 9 rows are right" in demo.stdout
