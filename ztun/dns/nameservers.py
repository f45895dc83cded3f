"""The nameservers and the search list of a resolv.conf, read again when the file changes."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path
from typing import TypeAlias

from ztun.mesh.model import canonical_ip
from ztun.telemetry.logging import get_logger

Address: TypeAlias = tuple[str, int]
"""(ip, port)."""

DNS_PORT = 53
MAX_NAMESERVERS = 3  # MAXNS of resolv.conf(5): the C library uses no more either


class ResolvConf:
    """A file in the form of resolv.conf(5). What cannot be read leaves what was known before.

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
        import dns.resolver  # a proxy that resolves nothing does without it and its clients of DNS over HTTPS and QUIC

        resolver = dns.resolver.Resolver(configure=False)
        try:
            resolver.read_resolv_conf(str(self._path))
        except (dns.exception.DNSException, ValueError, OSError) as error:
            self._log.warning("resolv.conf cannot be used", path=self._path, error=str(error))
            return
        found: dict[Address, None] = {}
        for nameserver in resolver.nameservers:
            with contextlib.suppress(
                ValueError
            ):  # one with a zone, which means something on one machine only
                found[canonical_ip(str(nameserver)), DNS_PORT] = None
        if self._from_pods:
            found = {one: None for one in found if not ipaddress.ip_address(one[0]).is_loopback}
            if not found:
                self._log.warning(
                    "all nameservers are on loopback addresses, which pods cannot reach",
                    path=self._path,
                    hint="name others in a file of your own (ZTUN_RESOLV_CONF), such as the one of systemd in"
                    " /run/systemd/resolve/resolv.conf",
                )
        self._nameservers = tuple(found)[:MAX_NAMESERVERS]
        suffixes = resolver.search or [resolver.domain]
        names = (suffix.to_text(omit_final_dot=True).lower() for suffix in suffixes)
        self._search = tuple(name for name in names if name)
