"""What keeps the keys in the memory of a process from getting onto a disk."""

from __future__ import annotations

import ctypes

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps() -> bool:
    """No core dump, and no debugger of another process without privileges; false where the system has no such switch.

    The kernel forgets this when another program is executed.
    """
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
