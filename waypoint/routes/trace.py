"""The reasoning behind a decision, written down while it is made."""

from __future__ import annotations

from ztun.routing import TraceStep

MAX_STEPS = 10_000  # an explanation that nobody would read to the end; protects from huge configurations


class Trace:
    """Collects steps; a table built without one costs nothing extra."""

    def __init__(self) -> None:
        self._steps: list[TraceStep] = []

    def add(self, depth: int, subject: str, outcome: str) -> None:
        """Note one step. ``depth`` is the indentation."""
        if len(self._steps) < MAX_STEPS:
            self._steps.append(TraceStep(depth, subject, outcome))

    def steps(self) -> tuple[TraceStep, ...]:
        """Everything noted so far."""
        return tuple(self._steps)
