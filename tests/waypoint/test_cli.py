"""The commands: exit codes and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from waypoint.cli import main

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).parents[2] / "compose" / "examples"
SERVERS = str(EXAMPLES / "corrected" / "echoserver.yaml")
CLIENTS = str(EXAMPLES / "corrected" / "telnet.yaml")
PRINTED = str(EXAMPLES / "as-printed" / "echoserver-vs.yaml")
LABELS = str(EXAMPLES / "as-printed" / "sourceLabels.yaml")
Capture = pytest.CaptureFixture[str]


def test_analyze_fails_on_errors_and_names_the_place(capsys: Capture) -> None:
    assert main(["analyze", SERVERS, PRINTED]) == 1
    out = capsys.readouterr().out
    assert f"PROTO-HTTP-ON-TCP {PRINTED}:8:3 VirtualService default/echo spec.http" in out
    assert "hint: move them to tcp" in out


def test_analyze_succeeds_without_errors(capsys: Capture) -> None:
    assert main(["analyze", SERVERS]) == 0
    assert "no findings" in capsys.readouterr().out


def test_strict_turns_refused_attributes_into_errors(capsys: Capture) -> None:
    assert main(["analyze", SERVERS, LABELS]) == 0
    assert main(["analyze", SERVERS, LABELS, "--strict"]) == 1


def test_machine_readable_findings_agree(capsys: Capture) -> None:
    main(["analyze", SERVERS, PRINTED, "-o", "json"])
    as_json = json.loads(capsys.readouterr().out)
    main(["analyze", SERVERS, PRINTED, "-o", "yaml"])
    assert yaml.safe_load(capsys.readouterr().out) == as_json
    assert {"severity", "code", "file", "line", "column", "object", "path", "message", "hint"} <= set(
        as_json[0]
    )


def test_fix_prints_documents_that_pass(capsys: Capture, tmp_path: Path) -> None:
    names = [str(EXAMPLES / "corrected" / "echo-server-backup.yaml"), SERVERS]
    printed = [PRINTED, str(EXAMPLES / "as-printed" / "echoserver-dr.yaml")]
    assert main(["analyze", *names, *printed, "--fix"]) == 0
    fixed = tmp_path / "fixed.yaml"
    fixed.write_text(capsys.readouterr().out)
    assert main(["analyze", *names, str(fixed)]) == 0


def test_explain_tells_both_engines(capsys: Capture) -> None:
    assert (
        main(
            [
                "explain",
                SERVERS,
                CLIENTS,
                LABELS,
                "--from",
                "default/telnet-client",
                "--to",
                "echo-server:19000",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "sourceLabels not evaluated in ambient mode" in out
    assert "result: route by default/echo tcp[0].match[0]" in out
    assert "result: fallthrough" in out
    assert "side by side" in out


def test_explain_as_values(capsys: Capture) -> None:
    question = ["--from", "default/telnet-client", "--to", "echo-server:19000", "--engine", "sidecar"]
    assert main(["explain", SERVERS, CLIENTS, LABELS, *question, "-o", "json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert main(["explain", SERVERS, CLIENTS, LABELS, *question, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == as_json
    assert as_json[0]["destinations"][0]["host"] == "echo-server-2.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["explain", SERVERS, "--to", "echo-server:19000"], 2, "--from or --via"),
        (["explain", SERVERS, "--from", "default/x"], 2, "--to"),
        (["explain", SERVERS, "--from", "default/x", "--to", "echo-server:19000"], 1, "no workload is called"),
        (["explain", "/nowhere", "--from", "a/b", "--to", "c:1"], 1, "cannot be read"),
        (["analyze"], 2, "PATH"),
        (["analyze", "/nowhere"], 1, ""),
        (
            ["explain", SERVERS, CLIENTS, "--from", "default/telnet-client", "--to", "echo-server:19000",
             "--engine", "none"],
            1,
            "no routing engine is called 'none'",
        ),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_used(
    capsys: Capture, arguments: list[str], exit_code: int, text: str
) -> None:
    assert main(arguments) == exit_code
    assert text in capsys.readouterr().err
