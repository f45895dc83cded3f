"""``host:port`` as it comes from peers and from people, read strictly."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ztun.mesh.model import canonical_ip, join_host_port

MAX_HOSTNAME_BYTES = 253  # RFC 1035 section 2.3.4, in text form

_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII | re.IGNORECASE)


class AddressError(ValueError):
    """The text is not a host with a port; the message says which part is wrong."""


class HostPort(NamedTuple):
    """A canonical IP address or a lower-case hostname, and a port from 1 to 65535."""

    host: str
    port: int
    is_ip: bool

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def parse_port(text: str) -> int:
    """A decimal port without sign, blank or leading zero; raises :class:`AddressError`."""
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise AddressError(f"{text[:16]!r} is not a port from 1 to 65535")
    return int(text)


def is_hostname(text: str) -> bool:
    """Whether ``text`` is a DNS name. A last label of digits is refused: that is a mistyped IPv4 address."""
    # the length first: what a cache keeps may come from a peer
    return 0 < len(text) <= MAX_HOSTNAME_BYTES and _is_hostname(text)


@lru_cache(maxsize=4096)  # the same names come with every connection
def _is_hostname(text: str) -> bool:
    labels = text.split(".")
    return all(_LABEL.fullmatch(label) for label in labels) and not re.fullmatch(
        r"[0-9]+|0[xX][0-9a-fA-F]*", labels[-1], re.ASCII
    )


@lru_cache(maxsize=4096)
def parse_host_port(text: str) -> HostPort:
    """Read ``10.0.0.1:80``, ``[2001:db8::1]:80`` or ``name.example:80``.

    Raises :class:`AddressError` for anything else: a missing or zero port, leading zeros, an IPv6 address
    without brackets or with a zone, user information, blanks, characters outside a DNS name.
    """
    host, separator, port_text = text.rpartition(":")
    if not separator:
        raise AddressError(f"{text[:64]!r} has no port")
    port = parse_port(port_text)
    if host.startswith("[") and host.endswith("]"):
        inside = host[1:-1]
        if ":" not in inside:
            raise AddressError(f"{host[:64]!r} is not an IPv6 address")
        return HostPort(_ip(inside), port, True)
    if ":" in host:
        raise AddressError(f"{host[:64]!r} needs brackets, as [::1]:80 has")
    if is_hostname(host):
        return HostPort(host.lower(), port, False)
    return HostPort(_ip(host), port, True)


def _ip(text: str) -> str:
    try:
        return canonical_ip(text)
    except ValueError as error:
        raise AddressError(f"{text[:64]!r} is neither an IP address nor a hostname") from error
