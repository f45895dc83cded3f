"""The ``ztun`` command.

Reading order: ``app`` (which commands there are), ``outcome`` (how they end), then one module per command:
``proxy``, ``echo``, ``demo``, ``version``, and ``ask`` (with ``watching``) for those that question a running proxy.
Each command imports what it needs when it runs, so that ``ztun --help`` is quick.
"""

from ztun.cli.app import main

__all__ = ["main"]
