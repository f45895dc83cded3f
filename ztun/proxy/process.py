"""What a proxy does to its own process before anything else."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import signal
import sys
from typing import TYPE_CHECKING

from certs.memory import forbid_dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SWITCH_SECONDS = 0.0005  # how long a scrape or a log batch may keep the interpreter from the packets
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def run_process(work: Callable[[], Coroutine[None, None, int]]) -> int:
    """Prepare the process and run ``work`` on its event loop; gives what it gives."""
    forbid_dumps()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where a stuck process is, on standard error
    keep_buffers()
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def keep_buffers() -> None:
    """Keep glibc from giving each large buffer back to the kernel: page faults were 40 % of bulk CPU.

    Quietly does nothing where the C library has no ``mallopt``.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 16 << 20)
        libc.mallopt(_M_TOP_PAD, 1 << 20)
