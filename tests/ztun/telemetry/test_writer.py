from __future__ import annotations

import io
import threading

import pytest

from ztun.telemetry.writer import BATCH_LINES, LineWriter

pytestmark = pytest.mark.unit


class Gated(io.BytesIO):
    """A sink that blocks in ``write`` until the test opens it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.entered.set()
        self.gate.wait()
        return super().write(data)


class Counting(io.BytesIO):
    """A sink that counts its writes."""

    writes = 0

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.writes += 1
        return super().write(data)


class Rendered:
    def __init__(self, text: str) -> None:
        self.text = text
        self.thread = ""

    def render(self) -> str:
        self.thread = threading.current_thread().name
        if not self.text:
            raise ValueError("nothing to render")
        return self.text


def test_close_writes_everything_in_order_and_in_batches() -> None:
    sink = Counting()
    writer = LineWriter(sink)
    total = BATCH_LINES * 3
    for number in range(total):
        assert writer.put(f"line {number}")
    writer.start()
    assert writer.close()
    assert sink.getvalue().decode().splitlines() == [f"line {number}" for number in range(total)]
    assert sink.writes == 3


def test_lines_are_rendered_on_the_writer_thread() -> None:
    sink = io.BytesIO()
    writer = LineWriter(sink)
    writer.start()
    line = Rendered("hello")
    writer.put(line)
    assert writer.close()
    assert sink.getvalue() == b"hello\n"
    assert line.thread == "log-writer"


def test_a_full_queue_drops_counts_and_says_so() -> None:
    sink = Gated()
    writer = LineWriter(sink, capacity_lines=2, clock=lambda: 0.0)
    writer.start()
    writer.put("stuck in the sink")
    assert sink.entered.wait(30)
    results = [writer.put(f"line {number}") for number in range(5)]
    assert results == [True, True, False, False, False]
    assert writer.dropped == 3
    sink.gate.set()
    assert writer.close(30)
    assert sink.getvalue().decode().splitlines() == [
        "stuck in the sink",
        "line 0",
        "line 1",
        "1970-01-01T00:00:00.000000Z\twarn\tlog\tlines dropped\tcount=3",
    ]


def test_close_does_not_wait_for_ever() -> None:
    sink = Gated()
    writer = LineWriter(sink)
    writer.start()
    writer.put("stuck")
    assert sink.entered.wait(30)
    assert not writer.close(0.01)
    sink.gate.set()
    assert writer.close(30)


def test_a_broken_sink_and_a_broken_line_do_not_end_the_thread() -> None:
    class Broken(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            if b"first" in data:
                raise BrokenPipeError
            return super().write(data)

    sink = Broken()
    writer = LineWriter(sink, clock=lambda: 0.0)
    writer.start()
    for number in range(BATCH_LINES):
        writer.put(f"first {number}")
    writer.put(Rendered(""))
    writer.put("second")
    assert writer.close(30)
    lines = sink.getvalue().decode().splitlines()
    assert "second" in lines
    assert lines[-1].endswith("lines dropped\tcount=65")
    assert writer.dropped == 65
