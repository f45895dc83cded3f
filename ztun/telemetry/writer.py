"""The thread that writes log lines, so that a slow terminal or disk never holds up a packet.

Lines wait in a bounded queue. When it is full, a line is dropped and counted; the count is a metric and is
written as a line of its own as soon as there is room. (ztunnel blocks the producer instead; with one event
loop per process that would stop all traffic.)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ztun.telemetry.lines import LogFormat, format_line

QUEUE_LINES = 10_000  # ztunnel's queue
BATCH_LINES = 64  # ztunnel's batch per write
YIELD_LINES = 8  # formatted without a break: about 0.1 ms
LINGER_SECONDS = 0.02  # collects a batch: one wake-up of the thread for many lines
CLOSE_SECONDS = 2.0  # how long shutdown waits for a reader that does not read


class Sink(Protocol):
    """Where the bytes go: a binary file such as ``sys.stdout.buffer``."""

    def write(self, data: bytes, /) -> object:
        """Write all of it."""

    def flush(self) -> object:
        """Hand it to the operating system."""


class Line(Protocol):
    """A line that is formatted on the writer thread."""

    def render(self) -> str:
        """The line without its newline."""


class LineWriter:
    """Bounded queue and writer thread. ``put`` never blocks and takes no lock of ours; call ``close`` at the
    end.

    ``style`` is the form of the line that reports dropped ones.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        style: LogFormat = "text",
        capacity_lines: int = QUEUE_LINES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        """Lines lost so far: the queue was full, or the sink refused them."""
        self._reported = 0
        self._sink = sink
        self._style: LogFormat = style
        self._capacity = capacity_lines
        self._clock = clock
        self._queue: queue.SimpleQueue[str | Line | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    def start(self) -> None:
        """Start the thread. Lines put earlier are kept."""
        self._thread.start()

    def put(self, line: str | Line) -> bool:
        """Queue a line without its newline; False when it was dropped because the queue is full."""
        if self._queue.qsize() >= self._capacity:
            self.dropped += 1
            return False
        self._queue.put(line)
        return True

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Write what is queued and end the thread; False when the sink was too slow for the time given."""
        self._closing.set()
        self._queue.put(None)
        if not self._thread.is_alive():
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            self._closing.wait(LINGER_SECONDS)
            if not self._write_batches(first):
                return
        self._write([])

    def _write_batches(self, first: str | Line) -> bool:
        """Write everything that is queued now; False when the end mark was among it."""
        batch = [first]
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                self._write(batch)
                return True
            if item is None:
                self._write(batch)
                return False
            batch.append(item)
            if len(batch) == BATCH_LINES:
                self._write(batch)
                batch = []

    def _write(self, batch: list[str | Line]) -> None:
        lines = []
        rendered = 0
        for item in batch:
            if isinstance(item, str):
                lines.append(item)
                continue
            rendered += 1
            if rendered % YIELD_LINES == 0:
                # gives up the interpreter's lock; asked for it, this thread would keep it for 5 ms
                time.sleep(0)
            try:
                lines.append(item.render())
            except Exception:
                # One line that cannot be formatted must not end the thread and with it all logging.
                self.dropped += 1
        if (dropped := self.dropped) != self._reported:
            lost = [("count", dropped - self._reported)]
            lines.append(format_line(self._style, self._clock(), "warn", "log", "lines dropped", lost))
            self._reported = dropped
        if not lines:
            return
        lines.append("")
        try:
            self._sink.write("\n".join(lines).encode("utf-8", "backslashreplace"))
            self._sink.flush()
        except (OSError, ValueError):
            # A closed pipe or a full disk must not end the proxy; there is nowhere to say so but the counter.
            self.dropped += len(lines) - 1
