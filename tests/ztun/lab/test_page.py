"""The examples of routing in the demo, with the real executables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ztun.lab.fabric import loopback_fabric
from ztun.lab.lab import Lab
from ztun.lab.page import MISTAKES, SUPPORTED, Outcome, PageCheck, Seen, Split, is_share
from ztun.lab.page_mesh import MODES, PageMesh, example, plan_page
from ztun.lab.page_report import print_page

FEW = 200  # connections of a split, instead of 1,000
DEMO_SECONDS = 240.0  # far more than a run takes; a demo that hangs does not hold up the tests


def mesh() -> PageMesh:
    with loopback_fabric() as fabric:
        return plan_page(fabric)


def all_right() -> Outcome:
    """What a run without faults gives, as far as the verdict looks at it."""
    return Outcome(
        rows=[
            Seen("gateways", name, mode, answer, answer, True)
            for mode in MODES
            for name, answer in (("ingressgateway-1", "hello"), ("ingressgateway-2", "hello-2"))
        ],
        supported=dict(SUPPORTED),
        splits=[Split(mode, 200, 1000) for mode in MODES],
        findings={
            name: [{"code": code, "file": "x.yaml", "line": 1, "message": ""} for code in codes]
            for name, (_, codes) in MISTAKES.items()
        },
    )


@pytest.mark.net
def test_the_demo_derives_the_published_table_from_live_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ztun", "demo", "--fabric", "loopback", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEMO_SECONDS,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.findall(
        r"^│ (\w+) +│ ((?:Not s|S)upported) +│ ((?:Not s|S)upported) +│ ok │$", done.stdout, re.MULTILINE
    )
    assert table == [
        ("destinationSubnets", "Supported", "Not supported"),
        ("port", "Supported", "Not supported"),
        ("sourceLabels", "Supported", "Not supported"),
        ("sourceNamespace", "Supported", "Not supported"),
        ("gateways", "Supported", "Supported"),
        ("weights", "Supported", "Supported"),
    ]
    for place in ("PROTO-HTTP-ON-TCP   │ echoserver-vs.yaml:8", "IST0174             │ echoserver-dr.yaml:7"):
        assert place in done.stdout
    assert re.search(
        r"^│ ambient +│ \d+ of 1000 +│ 0\.\d+ +│ 0\.\d+ to 0\.\d+ +│ yes", done.stdout, re.MULTILINE
    )


@pytest.mark.net
@pytest.mark.asyncio
async def test_the_table_is_what_is_seen_and_not_what_is_expected(tmp_path: Path) -> None:
    """Sidecars that decide as a waypoint does are reported as that."""
    with loopback_fabric() as fabric:
        page = plan_page(fabric)
        companions = [
            replace(one, command=(*one.command, "--engine", "ambient")) if one.dedicated else one
            for one in page.companions
        ]
        lab = Lab(page.plan, fabric, tmp_path / "lab", companions=companions)
        async with lab.running():
            await lab.change("mesh", page.objects(canary=False))
            outcome = await PageCheck(lab, page, connections=FEW).run()
    matches = ("destinationSubnets", "port", "sourceLabels", "sourceNamespace")
    assert [outcome.supported[name, mode] for name in matches for mode in MODES] == [False] * 8
    assert outcome.supported["gateways", "ambient"]
    expected = [f"{name} in sidecar mode: seen not to be supported" for name in matches]
    assert [fault for fault in outcome.faults if "seen" in fault] == expected
    assert "port, telnet-client (sidecar): hello, expected hello-2" in outcome.faults


@pytest.mark.unit
def test_nothing_is_said_when_all_is_right() -> None:
    assert all_right().faults == []
    assert print_page(Console(quiet=True), all_right())


@pytest.mark.unit
@pytest.mark.parametrize("key", SUPPORTED)
def test_an_attribute_that_acts_otherwise_is_a_fault(key: tuple[str, str]) -> None:
    outcome = all_right()
    outcome.supported[key] = not outcome.supported[key]
    assert len(outcome.faults) == 1
    assert f"{key[0]} in {key[1]} mode" in outcome.faults[0]
    assert not print_page(Console(quiet=True), outcome)


@pytest.mark.unit
def test_a_wrong_row_and_a_missing_finding_are_faults() -> None:
    outcome = all_right()
    outcome.rows.append(Seen("port", "telnet-client", "ambient", "hello-2", "hello", False))
    outcome.findings["weights"] = []
    assert outcome.faults == [
        "port, telnet-client (ambient): hello-2, expected hello",
        "weights as printed: the analyzer does not report IST0174",
        "weights as printed: the analyzer does not report PROTO-HTTP-ON-TCP",
    ]


@pytest.mark.unit
def test_the_interval_is_that_of_wilson() -> None:
    low, high = Split("ambient", 200, 1000).interval
    assert (round(low, 4), round(high, 4)) == (0.1764, 0.2259)
    low, high = Split("ambient", 0, 10).interval
    assert (round(low, 4), round(high, 4)) == (0.0, 0.2775)


@pytest.mark.unit
def test_four_standard_deviations_are_the_limit() -> None:
    assert is_share(250, 1000, 0.2)
    assert not is_share(251, 1000, 0.2)
    assert not Split("sidecar", 500, 1000).right


@pytest.mark.unit
def test_both_modes_have_clients_of_the_same_labels() -> None:
    labels = {
        one["metadata"]["name"]: one["metadata"]["labels"]
        for one in mesh().plan.objects
        if one["kind"] == "Pod"
    }
    twins = [value for name, value in labels.items() if name.startswith("telnet-client-2")]
    assert {one["app"] for one in twins} == {"telnet-client-2"}
    assert sorted(one.get("sidecar.istio.io/inject", "") for one in twins) == ["", "true"]


@pytest.mark.unit
def test_the_canary_comes_later() -> None:
    page = mesh()
    canary = page.plan.pod("default", "echo-server-gray").name
    assert canary in {one["metadata"]["name"] for one in page.objects(canary=True)}
    assert len(page.objects(canary=True)) == len(page.objects(canary=False)) + 1


@pytest.mark.unit
def test_examples_are_there_as_printed_and_corrected() -> None:
    assert "http" in example("printed/echoserver-vs")[0]["spec"]
    assert "tcp" in example("manifests/echoserver-vs")[0]["spec"]
