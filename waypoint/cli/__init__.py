"""The ``waypoint`` command.

Reading order: ``app`` (which commands there are), then one module per command: ``run``, ``gateway``, ``analyze`` with
``findings`` (how they are printed), ``explain``. Each command imports what it needs when it runs, so that
``waypoint --help`` is quick.
"""

from waypoint.cli.app import main

__all__ = ["main"]
