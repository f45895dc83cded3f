"""One child process: started, watched until it is ready, measured, and ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY_SECONDS = 60.0  # a cold interpreter that reads 10,000 documents on a busy two-core machine
STOP_SECONDS = 10.0  # an idle proxy ends at once; one that drains is stopped with its own deadline
POLL_SECONDS = 0.02
LOG_TAIL_BYTES = 8192
WANTED_DESCRIPTORS = 65536  # 10,000 connections need two descriptors each in a relay, with room to spare

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessError(AssertionError):
    """A child did not become ready or ended on its own; the message carries the end of its log."""


def raise_descriptor_limit() -> int:
    """Raise this process's RLIMIT_NOFILE (children inherit it) as far as allowed; returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in ((WANTED_DESCRIPTORS, WANTED_DESCRIPTORS), (min(hard, WANTED_DESCRIPTORS), hard)):
        if soft >= limit[0]:
            return soft
        with contextlib.suppress(OSError, ValueError):  # only with CAP_SYS_RESOURCE does the hard limit move
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            return limit[0]
    return soft


class Process:
    """A child process whose output goes to ``log``. ``ready`` is polled until it is true.

    It is killed with its parent (``setpriv --pdeathsig``), so an interrupted run leaves nothing behind.
    Raises :class:`ProcessError` when it ends before it is ready, or is not ready in ``READY_SECONDS``.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        log: Path,
        *,
        ready: Callable[[], bool] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.argv = [str(part) for part in argv]
        self.log = log
        self._ready = ready
        self._environment = {**os.environ, **(environment or {})}
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            error.add_note(f"--- {self.name}: {self.log}\n{self.log_tail()}")

    @property
    def pid(self) -> int:
        """The process id; raises ``ProcessError`` before the start."""
        if self._child is None:
            raise ProcessError(f"{self.name} was not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start the process without waiting, so that several can come up at once."""
        guard = shutil.which("setpriv")
        argv = [guard, "--pdeathsig", "KILL", "--", *self.argv] if guard else self.argv
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment
            )

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Poll ``ready``; on failure the process is ended."""
        self.wait_until(self._ready or (lambda: True), "ready", seconds)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        """Poll ``condition`` while the process runs; on failure the process is ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.running or time.monotonic() > deadline:
                state = "still running" if self.running else f"ended with {self.returncode}"
                self.stop()
                raise ProcessError(
                    f"{self.name} is not {what} within {seconds:.0f} s, {state}: "
                    f"{' '.join(self.argv)}\n{self.log_tail()}"
                )
            time.sleep(POLL_SECONDS)

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return None if self._child is None else self._child.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        if self._child is not None:
            self._child.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for the end; raises ``subprocess.TimeoutExpired`` when it does not come."""
        if self._child is None:
            raise ProcessError(f"{self.name} was not started")
        return self._child.wait(seconds)

    def stop(self) -> None:
        """SIGTERM twice (the second one cuts a drain short), then SIGKILL; does nothing when it has ended."""
        if self._child is None:
            return
        steps = ((signal.SIGTERM, 1.0), (signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None))
        for number, seconds in steps:
            if self._child.poll() is not None:
                break
            self._child.send_signal(number)
            try:
                self._child.wait(seconds)
            except subprocess.TimeoutExpired:
                continue

    def log_tail(self) -> str:
        """The end of the log, at most ``LOG_TAIL_BYTES``."""
        try:
            return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"

    def cpu_seconds(self) -> float:
        """User and system time of the whole process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def peak_rss_bytes(self) -> int:
        """The largest resident set size so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def rss_bytes(self) -> int:
        """Resident set size."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def descriptors(self) -> int:
        """Number of open file descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
