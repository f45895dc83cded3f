"""File descriptors, which every connection takes two of: the limit, and noticing that none is left."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from ztun.telemetry.readiness import PendingTask, Readiness

DESCRIPTORS_PER_CONNECTION = 2  # both ends; those over a tunnel take one
_ANY_DESCRIPTOR = 0  # standard input, which always is one


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one; gives (before, after)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return soft, hard
    return soft, soft


def connections_of_one_pod() -> int:
    """How many connections half of the descriptors are enough for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 2 // DESCRIPTORS_PER_CONNECTION)


class DescriptorWatch:
    """Makes the proxy unready while it has no descriptor for another connection.

    New connections then wait in the kernel's queue and are tried again each second. That is no busy loop and harms no
    open connection, but it tells nobody; so this asks for a descriptor now and then.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._shortage: PendingTask | None = None
        self._log = get_logger("proxy")

    def look(self) -> bool:
        """Whether there is a descriptor left. To be called about once a second."""
        try:
            os.close(os.dup(_ANY_DESCRIPTOR))
        except OSError as error:
            if self._shortage is None:
                self._shortage = self._readiness.register("file descriptors")
                self._log.error(
                    "no file descriptor is left, new connections wait",
                    reason=error.strerror,
                    limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                    hint="raise the limit of open files (ulimit -Hn)",
                )
            return False
        if self._shortage is not None:
            self._shortage.done()
            self._shortage = None
            self._log.info("there are file descriptors again")
        return True
