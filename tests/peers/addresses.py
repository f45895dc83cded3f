"""Loopback addresses that no other test process uses: a block of 127.0.0.0/8 per process id."""

from __future__ import annotations

import contextlib
import itertools
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
    """A port that nobody has on any address, and that this process gives to nobody else.

    Proxies listen for metrics on all addresses, so a port that is free on ``ip`` alone may be taken. Below the range
    of ephemeral ports no connection that is being made can take it before it is used.
    """
    for _ in range(_PORTS_PER_PROCESS):
        port = next(_ports)
        with socket.socket() as anywhere, contextlib.suppress(OSError):
            anywhere.bind(("0.0.0.0", port))
            return port
    raise OSError(f"no free port for {ip} among {_PORTS_PER_PROCESS}")


_PORTS = range(20_000, 32_000)
_PORTS_PER_PROCESS = 1_000  # a process has a thousand to itself, and its neighbours others
_first = _PORTS.start + os.getpid() % (len(_PORTS) // _PORTS_PER_PROCESS) * _PORTS_PER_PROCESS
_ports = itertools.cycle(range(_first, _first + _PORTS_PER_PROCESS))
