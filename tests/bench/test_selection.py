"""What is left out when a tool is missing, and that it is said."""

from __future__ import annotations

import pytest

from tests.bench import selection
from tests.bench.rows import BY_NAME

pytestmark = pytest.mark.unit


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "envoy_binary", lambda: "envoy")
    monkeypatch.setattr(selection, "nginx_binary", lambda: "nginx")
    monkeypatch.setattr(selection, "which", lambda name: name)


@pytest.mark.usefixtures("everything_installed")
def test_nothing_is_left_out_when_all_is_there() -> None:
    chosen = selection.possible(("ztun", "envoy", "ztun"), frozenset(BY_NAME))
    assert chosen.kinds == ("ztun", "envoy")
    assert chosen.names == frozenset(BY_NAME)
    assert chosen.notes == ()


@pytest.mark.usefixtures("everything_installed")
def test_without_wrk_there_are_no_http_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "which", lambda name: None)
    chosen = selection.possible(
        ("ztun",), frozenset({"http_1", "waypoint_http_64", "cpu_requests", "rtt_p50"})
    )
    assert chosen.names == {"rtt_p50"}
    assert not chosen.http
    assert len(chosen.notes) == 1


@pytest.mark.usefixtures("everything_installed")
def test_without_the_wheel_there_is_no_envoy_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("not for this machine")

    monkeypatch.setattr(selection, "envoy_binary", missing)
    chosen = selection.possible(("ztun", "envoy"), frozenset({"rtt_p50"}))
    assert chosen.kinds == ("ztun",)
    assert "not for this machine" in chosen.notes[0]
