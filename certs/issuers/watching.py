"""Word of changed files, for the issuers that read a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
import watchfiles

DEBOUNCE_MILLISECONDS = 200  # several files of one renewal arrive together; ztunnel waits 2 s
REWATCH_SECONDS = 5.0  # after the directory itself went away

_log = structlog.get_logger("certs.issuers")


async def watch_directory(path: Path, changed: Callable[[], None]) -> None:
    """Call ``changed`` after every burst of changes below ``path``, until cancelled.

    The directory is watched, not its files: Kubernetes swaps a symlink beside them.
    """
    while True:
        stop = asyncio.Event()
        watching = asyncio.ensure_future(_watch(path, changed, stop))
        try:
            # The watching thread looks at the event every 50 ms; a cancellation it would notice after 5 s.
            await asyncio.shield(watching)
        finally:
            stop.set()
            await watching
        await asyncio.sleep(REWATCH_SECONDS)
        changed()


async def _watch(path: Path, changed: Callable[[], None], stop: asyncio.Event) -> None:
    try:
        async for _ in watchfiles.awatch(path, debounce=DEBOUNCE_MILLISECONDS, stop_event=stop):
            changed()
    except (OSError, RuntimeError) as error:
        _log.warning("cannot watch", path=str(path), error=str(error), retry_seconds=REWATCH_SECONDS)
