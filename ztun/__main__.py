"""``python -m ztun`` is the ``ztun`` command."""

from __future__ import annotations

import sys

from ztun.cli import main

if __name__ == "__main__":
    sys.exit(main())
