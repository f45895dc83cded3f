"""Word of changed files, for the issuers that read a directory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import structlog
import watchfiles

DEBOUNCE_MILLISECONDS = 200  # several files of one renewal arrive together; ztunnel waits 2 s
POLL_SECONDS = 5.0  # looked at this often even without a notice: not every file system gives one
MAX_ENTRIES = 10_000  # that a look compares: four files for each of 1,024 identities, twice over

_Signature: TypeAlias = Mapping[str, tuple[int, int, int, int]]
"""(device, inode, size, modification time in ns) of each entry; links are followed."""

_log = structlog.get_logger("certs.issuers")


async def watch_directory(path: Path, changed: Callable[[], None]) -> None:
    """Call ``changed`` at once and after every burst of changes below ``path``, until cancelled.

    The directory is watched, not its files: Kubernetes swaps a symlink beside them. A directory that is itself replaced
    leaves the watch with the old one, which tells nothing any more; so it is looked at every ``POLL_SECONDS`` as well,
    and what a look finds that no notice told of starts the watch anew. (Another inode is no sign to go by: file systems
    give the number of a removed directory to the next one.)
    """
    seen = _Seen(path)
    await seen.differs()
    changed()  # of what happened before this first look nobody can tell
    while True:
        stop = asyncio.Event()
        watching = asyncio.ensure_future(_watch(seen, changed, stop))
        try:
            # The watching thread looks at the event every 50 ms; a cancellation it would notice after POLL_SECONDS.
            await asyncio.shield(watching)
        finally:
            stop.set()
            await watching


class _Seen:
    """What the last look found below a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signature: _Signature = {}

    async def differs(self) -> bool:
        """Look again: whether anything changed. In a thread, for a directory may be on a slow disk."""
        before, self._signature = self._signature, await asyncio.to_thread(_look, self.path)
        return self._signature != before


async def _watch(seen: _Seen, changed: Callable[[], None], stop: asyncio.Event) -> None:
    """Pass on notices until the watch proves deaf or cannot be had."""
    try:
        async for notices in watchfiles.awatch(
            seen.path,
            debounce=DEBOUNCE_MILLISECONDS,
            stop_event=stop,
            rust_timeout=round(POLL_SECONDS * 1000),
            yield_on_timeout=True,
        ):
            # Looked at before it is read, so that a change in between is found by the next look.
            differs = await seen.differs()
            if notices or differs:
                changed()
            if differs and not notices:
                return
    except (OSError, RuntimeError, ExceptionGroup) as error:  # the last for what its thread raises
        _log.warning("cannot watch", path=str(seen.path), error=str(error), retry_seconds=POLL_SECONDS)
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await stop.wait()
        except TimeoutError:
            if await seen.differs():
                changed()


def _look(path: Path) -> _Signature:
    found: dict[str, tuple[int, int, int, int]] = {}
    for name in itertools.islice(_names(str(path)), MAX_ENTRIES):
        with contextlib.suppress(OSError):  # gone meanwhile, or a link to nothing
            status = os.stat(name)  # noqa: PTH116  # a third of what Path takes, while packets wait for the interpreter
            found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _names(path: str) -> Iterator[str]:
    """The directory, what is in it, and what is in its directories: as deep as the issuers read."""
    yield path
    for name, is_directory in _listed(path):
        yield name
        if is_directory:
            yield from (below for below, _ in _listed(name))


def _listed(path: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(path) as entries:
            return sorted((entry.path, entry.is_dir()) for entry in entries)
    except OSError:
        return []
