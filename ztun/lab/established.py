"""Who is connected to a program, by the kernel's own table: what an application would see as its clients' addresses.

Source: proc_net_tcp.rst of the kernel's documentation. Addresses are words in the byte order of the machine.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path

TABLES = (Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6"))
ESTABLISHED = "01"


def peers_of(port: int) -> set[str]:
    """The addresses at the other end of the connections that were accepted on a port, in this thread's namespace."""
    found = set()
    for table in TABLES:
        if table.exists():
            found |= set(read_peers(table.read_text(), port))
    return found


def read_peers(text: str, port: int) -> Iterator[str]:
    """The same from the text of a table."""
    for line in text.splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
            yield str(_address(remote.rpartition(":")[0]))


def _address(digits: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
