"""A program of the lab as a child process: its log, its readiness, its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from ztun.errors import ZtunError

READY_SECONDS = 60.0  # twenty cold interpreters at once on a busy machine; alone one needs a second
STOP_SECONDS = 10.0  # more than the drain deadline of a proxy
POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 4096


class LabError(ZtunError):
    """A part of the lab did not start, ended by itself, or did not do what it was told."""

    stage = "lab"


class Program:
    """One child process, which writes to a log file of its own and is always stopped by its process id.

    With ``once`` it does something and ends.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        once: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._once = once
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start it (again), without waiting for it to be ready."""
        self._stopping = False
        # With setpriv (util-linux) a lab that is killed takes its children with it.
        guard = shutil.which("setpriv")
        command = [guard, "--pdeathsig", "TERM", "--", *self._command] if guard else self._command
        with self.log.open("ab") as output:
            self._child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the lab, which stops its programs itself
            )

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Poll a condition; raises :class:`LabError` with the end of the log when it does not come true."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while self.running or (self._once and self.returncode == 0):
                    if await condition():
                        return
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            message = f"{self.name}: not {what} within {READY_SECONDS:.0f} s"
            raise self._error("lab_timeout", message) from None
        message = f"{self.name} ended with {self.returncode} before it was {what}"
        raise self._error("lab_process_ended", message)

    async def watch(self) -> None:
        """Return when the process was stopped; raises :class:`LabError` when it ends by itself."""
        child = self._child
        if child is not None:
            await child.wait()
        if child is self._child and not self._stopping and not (self._once and self.returncode == 0):
            raise self._error("lab_process_ended", f"{self.name} ended by itself with {self.returncode}")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL; nothing when it has ended."""
        self._stopping = True
        if self._child is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.running:
                break
            self._child.send_signal(number)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._child.wait()
            except TimeoutError:
                continue

    async def kill(self) -> None:
        """SIGKILL, as when it crashes; this is not taken for an end by itself."""
        self._stopping = True
        if self._child is not None and self.running:
            self._child.kill()
            await self._child.wait()

    async def succeeded(self) -> bool:
        """Whether it has ended well."""
        return self.returncode == 0

    @property
    def pid(self) -> int | None:
        """Its process id once started."""
        return None if self._child is None else self._child.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.returncode is None

    @property
    def returncode(self) -> int | None:
        """Its exit status, None while it runs."""
        return None if self._child is None else self._child.returncode

    def _error(self, code: str, message: str) -> LabError:
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            tail = file.read().decode(errors="replace").rstrip()
        return LabError(code, f"{message}\n{tail}".rstrip(), hint=f"its log: {self.log}")
