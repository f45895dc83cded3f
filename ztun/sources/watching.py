"""Word of changed files, and where the kernel gives none a look from time to time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from pathlib import Path

from watchfiles import Change, awatch

from ztun.mesh.document import Problem

SETTLE_SECONDS = 0.05  # changes closer together than this are read once; editors write in several steps
MAX_DELAY_SECONDS = 1.0  # read at the latest after this, however busy the directory is
POLL_SECONDS = 5.0  # looked at this often even without a notice: not every file system gives one


class Watch:
    """Watches directories. ``relevant`` says which changes count, without it all do.

    A watch that cannot be made is a warning for ``on_problem``, once until there was one again.
    """

    def __init__(
        self,
        on_problem: Callable[[Problem], None],
        *,
        relevant: Callable[[Change, str], bool] | None = None,
        recursive: bool = False,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._on_problem = on_problem
        self._relevant = relevant
        self._recursive = recursive
        self._poll_seconds = poll_seconds
        self._failing = False

    async def notices(self, directories: Collection[Path]) -> AsyncGenerator[bool, None]:
        """True when something changed, False after every ``poll_seconds`` without; to be closed by who leaves it.

        It ends when the directories could not be watched, which is the case after the last look: list them again.
        """
        watched = awatch(
            *directories,
            watch_filter=self._relevant,
            debounce=round(MAX_DELAY_SECONDS * 1000),
            step=round(SETTLE_SECONDS * 1000),
            rust_timeout=round(self._poll_seconds * 1000),
            yield_on_timeout=True,
            recursive=self._recursive,
        )
        try:
            async with aclosing(watched):
                async for changes in watched:
                    self._failing = False
                    yield bool(changes)
        # What watchfiles raises: of a path, of the kernel, of the thread that waits. One of the directories may have
        # gone since they were listed, and instances are few (128 for a user) and shared with whoever else runs.
        except (OSError, RuntimeError, ExceptionGroup) as error:
            if not self._failing:
                self._failing = True
                self._on_problem(_not_watched(directories, error, self._poll_seconds))
            await asyncio.sleep(self._poll_seconds)
            yield False


def _not_watched(directories: Collection[Path], error: Exception, poll_seconds: float) -> Problem:
    message = f"cannot be watched, looked at every {poll_seconds:g} s instead: {error}"
    hint = "raise the sysctls fs.inotify.max_user_instances and fs.inotify.max_user_watches"
    if isinstance(error, FileNotFoundError):
        hint = "a directory that was removed just now is left out at the next look"
    elif isinstance(error, PermissionError):
        hint = "give the proxy the right to read it"
    where = ", ".join(sorted(str(directory) for directory in directories))
    return Problem(None, where, "", message, hint, "WATCH", "warning")
