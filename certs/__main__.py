"""``python -m certs`` is the ``certs`` command."""

from __future__ import annotations

import sys

from certs.cli import main

if __name__ == "__main__":
    sys.exit(main())
