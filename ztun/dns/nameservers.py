"""The nameservers and the search list of a resolv.conf, read again when the file changes."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ztun.mesh.address import is_hostname
from ztun.mesh.model import canonical_ip
from ztun.telemetry.logging import get_logger

Address: TypeAlias = tuple[str, int]
"""(ip, port)."""

DNS_PORT = 53
MAX_NAMESERVERS = 3  # MAXNS of resolv.conf(5): the C library uses no more either
MAX_BYTES = 64 * 1024  # of the file: a hundred times a long one
MAX_NAMED = 5  # lines in one message
MAX_SHOWN = 60  # characters of each


class ResolvConf:
    """A file in the form of resolv.conf(5). Without a nameserver in it what was known before stays in force.

    Where the nameservers are asked from other network namespaces (``from_pods``) those on a loopback address are left
    out: there it is somebody else's.
    """

    def __init__(self, path: Path, *, from_pods: bool = False) -> None:
        self._path = path
        self._from_pods = from_pods
        self._version: tuple[int, int, int] | None = None
        self._nameservers: tuple[Address, ...] = ()
        self._search: tuple[str, ...] = ()
        self._log = get_logger("dns")

    def nameservers(self) -> tuple[Address, ...]:
        """At most three, in the order of the file."""
        self._follow()
        return self._nameservers

    def search(self) -> tuple[str, ...]:
        """The suffixes that a resolver appends to short names, in lower case and without final dot."""
        self._follow()
        return self._search

    def _follow(self) -> None:
        try:
            status = self._path.stat()
        except OSError:
            return
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version == self._version:
            return
        self._version = version
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_BYTES).decode(errors="replace")
        except OSError as error:
            self._log.warning(
                "resolv.conf cannot be read",
                path=self._path,
                error=str(error),
                hint="check who may read it; what it said before stays in force",
            )
            return
        read = _read(text)
        if read.unusable:
            self._log.warning(
                "lines of resolv.conf cannot be used",
                path=self._path,
                lines=", ".join(read.unusable[:MAX_NAMED]),
                count=len(read.unusable),
                hint="a nameserver is an IP address without zone, a search list consists of names; the others count",
            )
        if not read.nameservers:
            self._log.warning(
                "resolv.conf names no nameserver",
                path=self._path,
                hint="write 'nameserver IP', one per line; what it said before stays in force",
            )
            return
        found = read.nameservers
        if self._from_pods:
            found = tuple(ip for ip in found if not ipaddress.ip_address(ip).is_loopback)
            if not found:
                self._log.warning(
                    "all nameservers are on loopback addresses, which pods cannot reach",
                    path=self._path,
                    hint="name others in a file of your own (ZTUN_RESOLV_CONF), such as the one of systemd in"
                    " /run/systemd/resolve/resolv.conf",
                )
        self._nameservers = tuple((ip, DNS_PORT) for ip in found[:MAX_NAMESERVERS])
        search = read.search
        if search is None:
            search = (socket.gethostname().lower().partition(".")[2],)
        self._search = tuple(name for name in search if name)


@dataclass(frozen=True, slots=True)
class _Read:
    """What is said, each nameserver once; ``unusable`` are lines with their numbers.

    Without a search list it is the domain of the machine's own name.
    """

    nameservers: tuple[str, ...]
    search: tuple[str, ...] | None
    unusable: tuple[str, ...]


def _read(text: str) -> _Read:
    """Line by line, as the C library does: what cannot be used is passed over, the last search list counts."""
    nameservers: dict[str, None] = {}
    search: tuple[str, ...] | None = None
    unusable: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        keyword, *values = line.split() or [""]
        usable = True
        if keyword == "nameserver":
            try:
                # only here the C library takes what is behind the value for a comment
                nameservers[canonical_ip(re.split("[;#]", values[0])[0])] = None
            except (ValueError, IndexError):
                usable = False
        elif keyword in ("search", "domain"):
            names = [
                name.removesuffix(".").lower() for name in (values if keyword == "search" else values[:1])
            ]
            search = tuple(name for name in names if not name or is_hostname(name))
            usable = len(search) == len(names) > 0
        if not usable:
            unusable.append(f"{number} ({' '.join(line.split())[:MAX_SHOWN]!r})")
    return _Read(tuple(nameservers), search, tuple(unusable))
