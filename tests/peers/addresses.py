"""Loopback addresses that no other test process uses: a block of 127.0.0.0/8 per process id."""

from __future__ import annotations

import os
import socket


class AddressBlock:
    """250 addresses ``127.x.y.1`` to ``127.x.y.250``; x and y come from the process id and ``offset``.

    Linux answers for all of 127.0.0.0/8 without any set-up, so each pod of a test can have its own address
    and all of them the same well-known ports.
    """

    def __init__(self, offset: int = 0) -> None:
        number = (os.getpid() * 7 + offset) % (200 * 250)
        self.prefix = f"127.{10 + number // 250}.{1 + number % 250}"
        self._next = 0

    def take(self) -> str:
        """The next address of the block."""
        self._next += 1
        if self._next > 250:
            raise ValueError(f"all 250 addresses of {self.prefix}.0/24 are taken")
        return f"{self.prefix}.{self._next}"


def free_port(ip: str) -> int:
    """A port that is free on ``ip`` at this moment; safe on an address of one's own block."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        port: int = probe.getsockname()[1]
        return port
