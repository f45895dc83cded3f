"""What must have happened before the proxy calls itself ready."""

from __future__ import annotations

from types import TracebackType


class PendingTask:
    """One thing that start-up waits for; ``done`` may be called more than once, from any thread.

    As a context manager it is done at the end of the block when that ended without an error.
    """

    __slots__ = ("_name", "_readiness")

    def __init__(self, readiness: Readiness, name: str) -> None:
        self._readiness = readiness
        self._name = name

    def done(self) -> None:
        """The task is finished."""
        self._readiness.finish(self._name)

    def __enter__(self) -> PendingTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.done()


class Readiness:
    """The unfinished start-up tasks, e.g. "state manager" and "proxy". Ready means that there are none."""

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}

    def register(self, name: str) -> PendingTask:
        """Add a task to wait for."""
        self._pending[name] = None
        return PendingTask(self, name)

    def finish(self, name: str) -> None:
        """Take a task off the list; unknown names are ignored."""
        self._pending.pop(name, None)

    @property
    def pending(self) -> tuple[str, ...]:
        """The unfinished tasks in alphabetical order."""
        return tuple(sorted(self._pending))

    @property
    def ready(self) -> bool:
        """No task is unfinished."""
        return not self._pending
