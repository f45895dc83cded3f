"""``python -m waypoint`` is the ``waypoint`` command."""

from __future__ import annotations

import sys

from waypoint.cli import main

if __name__ == "__main__":
    sys.exit(main())
