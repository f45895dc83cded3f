"""The ruler of stalls: an event loop that times itself, and a client that notices a pause."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

import pytest

from tests.bench.growth.reload import Pinger
from tests.bench.growth.watched import NOTED_SECONDS, LagTimer, longest_lag


@pytest.mark.net
@pytest.mark.asyncio
async def test_a_loop_that_is_held_up_says_for_how_long() -> None:
    output = io.StringIO()
    timer = LagTimer(asyncio.get_running_loop(), output)
    timer.start()
    held = 10 * NOTED_SECONDS
    end = time.monotonic() + held
    while time.monotonic() < end:  # what a stall is: nothing else of the loop runs
        pass
    while not output.getvalue():
        await asyncio.sleep(0)
    at, lag = (float(word) for word in output.getvalue().splitlines()[0].split())
    assert lag >= held - NOTED_SECONDS
    assert at >= end


@pytest.mark.unit
def test_only_lags_that_touch_the_interval_count(tmp_path: Path) -> None:
    log = tmp_path / "lag"
    log.write_text("10.0 0.9\n20.0 0.3\n21.5 0.4\n30.0 0.8\n")
    assert longest_lag(log, 19.0, 22.0) == 0.4
    assert longest_lag(log, 9.5, 9.7) == 0.9
    assert longest_lag(log, 29.5, 40.0) == 0.8
    assert longest_lag(log, 22.0, 29.0) == 0.0


@pytest.mark.unit
def test_a_client_tells_the_longest_round_trip_of_an_interval() -> None:
    pinger = Pinger(("127.0.0.1", 0), [(10.0, 0.5), (11.0, 0.1), (12.0, 0.2)])
    assert pinger.longest(10.5, 11.5) == 0.1
    assert pinger.longest(9.8, 10.2) == 0.5
    assert pinger.longest(13.0, 14.0) == 0.0
