"""What the tunnels of a process together hold for readers that have stopped.

Each tunnel bounds what it holds itself; but peers may open many, and one process serves every pod of its node.
"""

from __future__ import annotations

from dataclasses import dataclass

from ztun.hbone.settings import MIB


@dataclass(slots=True)
class Holdings:
    """Bytes of payload, counted by every connection that was made with this."""

    limit: int = 512 * MIB
    """Above it what comes and has to wait gets its connection credit on delivery only, in all tunnels."""
    most: int = 1024 * MIB
    """Above it streams are reset: one for which much waits when more comes, and who was read longest ago."""
    total: int = 0

    @property
    def large(self) -> bool:
        """Whether tunnels shall take no more than their windows allow."""
        return self.total > self.limit

    @property
    def too_large(self) -> bool:
        """Whether somebody has to lose what waits."""
        return self.total > self.most
