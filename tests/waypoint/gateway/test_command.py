"""``waypoint gateway``: what is said when it cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.credentials import ThrowAwayAuthority
from tests.waypoint.gateway.edge import SERVICE_PORT, gateway, server
from waypoint.cli import main

pytestmark = pytest.mark.unit

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command line that would work."""
    config = tmp_path / "mesh.yaml"
    config.write_text(str(gateway("ingress", server(SERVICE_PORT))))  # JSON-like text is YAML
    authority = ThrowAwayAuthority(tmp_path).directory
    given = {
        "--config": str(config),
        "--name": "ingress",
        "--namespace": "istio-system",
        "--ca": str(authority),
    }
    return ["gateway", *(text for option in given.items() for text in option)]


@pytest.mark.parametrize("label", ["istio", "=ingress", ""])
def test_a_label_needs_a_key_and_a_value(arguments: list[str], capsys: Capture, label: str) -> None:
    assert main([*arguments, "--label", label]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["--config", "--name", "--namespace", "--ca"])
def test_what_is_required_is_asked_for(arguments: list[str], capsys: Capture, missing: str) -> None:
    at = arguments.index(missing)
    assert main(arguments[:at] + arguments[at + 2 :]) == 2
    assert missing in capsys.readouterr().err


def test_an_unknown_engine_names_those_that_are_there(arguments: list[str], capsys: Capture) -> None:
    assert main([*arguments, "--engine", "quantum"]) == 1
    error = capsys.readouterr().err
    assert "no routing engine is called 'quantum'" in error
    assert "ambient" in error


def test_the_command_is_in_the_help(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    assert "gateway" in capsys.readouterr().out
