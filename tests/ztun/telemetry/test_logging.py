from __future__ import annotations

import io
import json
import logging as stdlib_logging
from collections.abc import Iterator

import pytest

from ztun.errors import ConnectError
from ztun.telemetry.levels import DEBUG, Levels
from ztun.telemetry.lines import LogFormat
from ztun.telemetry.logging import (
    REPEAT_BURST_LINES,
    REPEAT_TABLE_ENTRIES,
    REPEAT_WINDOW_SECONDS,
    Logging,
    RepeatGate,
    get_logger,
)
from ztun.telemetry.writer import LineWriter

pytestmark = pytest.mark.unit

TIME = "1970-01-01T00:00:00.000000Z"


class Installed:
    """Logging taken over for one test."""

    def __init__(self) -> None:
        self.now = 0.0
        self._closers: list[Logging] = []
        self._sink = io.BytesIO()
        self._writer = LineWriter(self._sink)
        self._writer.start()

    def start(self, style: LogFormat = "text", directives: str = "info") -> Levels:
        set_up = Logging(
            self._writer,
            style=style,
            levels=Levels(directives),
            clock=lambda: 0.0,
            monotonic=lambda: self.now,
        )
        set_up.install()
        self._closers.append(set_up)
        return set_up.levels

    def lines(self) -> list[str]:
        self.close()
        return self._sink.getvalue().decode().splitlines()

    def close(self) -> None:
        while self._closers:
            self._closers.pop().close()
        self._writer.close(30)


@pytest.fixture
def installed() -> Iterator[Installed]:
    set_up = Installed()
    yield set_up
    set_up.close()


def test_a_line_with_fields_spans_and_an_error(installed: Installed) -> None:
    log = get_logger("proxy::outbound").span("proxy", wl="default/echo")
    installed.start()
    log.bind(peer="10.0.0.1:1").info(
        "dial failed", attempt=2, error=ConnectError("refused", "no luck", hint="retry")
    )
    (line,) = installed.lines()
    assert line == (
        f'{TIME}\tinfo\tproxy::outbound:proxy{{wl="default/echo"}}\tdial failed\tpeer="10.0.0.1:1" attempt=2 '
        'error="no luck" error.code="refused" error.stage="connect" error.hint="retry"'
    )


def test_json(installed: Installed) -> None:
    installed.start("json")
    get_logger("xds").span("xds", id=4).warning("slow", seconds=1.5)
    (line,) = installed.lines()
    assert json.loads(line) == {
        "level": "warn",
        "time": TIME,
        "scope": "xds",
        "message": "slow",
        "seconds": 1.5,
        "xds": {"id": 4},
    }


def test_levels_change_while_loggers_exist(installed: Installed) -> None:
    levels = installed.start(directives="info,proxy=warn")
    proxy, other = get_logger("proxy"), get_logger("other")
    proxy.info("hidden")
    other.debug("hidden")
    assert not other.enabled(DEBUG)
    levels.update("proxy=trace,other=debug")
    proxy.trace("shown")
    other.debug("shown")
    assert other.enabled(DEBUG)
    assert [line.split("\t")[1:] for line in installed.lines()] == [
        ["trace", "proxy", "shown"],
        ["debug", "other", "shown"],
    ]


def test_repeated_warnings_are_limited_and_counted(installed: Installed) -> None:
    installed.start()
    log = get_logger("proxy")
    for number in range(REPEAT_BURST_LINES + 7):
        log.warning("accept failed", attempt=number)
    log.warning("something else")
    for _ in range(REPEAT_BURST_LINES * 2):
        log.info("accept failed")
    installed.now = REPEAT_WINDOW_SECONDS
    log.warning("accept failed")
    lines = installed.lines()
    assert len([line for line in lines if "\twarn\tproxy\taccept failed" in line]) == REPEAT_BURST_LINES + 1
    assert len([line for line in lines if "\tinfo\t" in line]) == REPEAT_BURST_LINES * 2
    assert len([line for line in lines if "something else" in line]) == 1
    assert lines[-1].endswith("accept failed\tsuppressed=7")


def test_the_same_message_with_another_code_is_another_warning(installed: Installed) -> None:
    installed.start()
    for _ in range(REPEAT_BURST_LINES + 1):
        get_logger("proxy").error("failed", error=ConnectError("a", "first"))
    get_logger("proxy").error("failed", error=ConnectError("b", "second"))
    assert len(installed.lines()) == REPEAT_BURST_LINES + 1


def test_the_table_of_repeats_is_bounded() -> None:
    gate = RepeatGate()
    for number in range(REPEAT_TABLE_ENTRIES * 2):
        assert gate.admit((str(number),), 0.0) == 0
    assert len(gate._seen) == REPEAT_TABLE_ENTRIES


def test_exceptions_carry_their_traceback_on_one_line(installed: Installed) -> None:
    installed.start()
    try:
        raise ValueError("boom\nfake line")
    except ValueError:
        get_logger("proxy").exception("unexpected")
    (line,) = installed.lines()
    assert 'ValueError: boom\\nfake line"' in line


def test_libraries_are_heard_from_warning_upwards(installed: Installed) -> None:
    installed.start()
    stdlib_logging.getLogger("some.library").info("hidden")
    stdlib_logging.getLogger("some.library").warning("careful: %s", "x")
    assert installed.lines() == [f"{TIME}\twarn\tsome.library\tcareful: x"]


def test_without_set_up_lines_go_to_the_standard_library(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("proxy").warning("not installed", port=15008)
    assert caplog.record_tuples == [("proxy", stdlib_logging.WARNING, "not installed port=15008")]
