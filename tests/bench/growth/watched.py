"""``python -m tests.bench.growth.watched LAG_FILE MODULE ARGUMENT...``: a proxy whose event loop times itself.

A timer of the loop is due every millisecond; each time that it came late, a line ``<monotonic time> <seconds>`` goes
to the file. Nothing else of the program is changed.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import uvloop

PERIOD_SECONDS = 0.001
NOTED_SECONDS = 0.002  # later than this is written down


@dataclass(slots=True)
class LagTimer:
    """Runs on the loop it watches."""

    loop: asyncio.AbstractEventLoop
    output: TextIO
    due: float = 0.0

    def start(self) -> None:
        """The first call comes when the loop runs."""
        self.due = time.monotonic() + PERIOD_SECONDS
        self.loop.call_later(PERIOD_SECONDS, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self.due > NOTED_SECONDS:
            self.output.write(f"{now:.6f} {now - self.due:.6f}\n")
        self.start()


def longest_lag(log: Path, begin: float, end: float) -> float:
    """The longest lag in seconds that touches an interval of the monotonic clock; 0 when there was none."""
    longest = 0.0
    for line in log.read_text().splitlines():
        at, lag = (float(word) for word in line.split())
        if at - lag < end and at > begin:
            longest = max(longest, lag)
    return longest


def main(arguments: list[str]) -> None:
    """Run the module as ``python -m`` would."""
    log, module = arguments[0], arguments[1]
    output = Path(log).open("w", buffering=1)  # noqa: SIM115 - as long as the process
    make_loop = uvloop.new_event_loop

    def watched_loop() -> asyncio.AbstractEventLoop:
        loop = make_loop()
        if threading.current_thread() is threading.main_thread():  # the admin server has a loop of its own
            LagTimer(loop, output).start()
        return loop

    uvloop.new_event_loop = watched_loop
    sys.argv = arguments[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
