"""The ``ztun`` command, also as ``python -m ztun``."""

from __future__ import annotations

import sys

_INTERRUPTED = 130  # 128 + SIGINT


def main() -> int:
    """Run the command line; the imports take long enough that somebody may think better of it meanwhile."""
    try:
        from ztun.cli import main as run

        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
