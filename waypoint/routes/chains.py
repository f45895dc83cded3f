"""Choice by destination address and server name: longest prefix, then exact name, then longest wildcard.

This is how Envoy picks a filter chain. The cost of a lookup grows with the number of distinct prefix lengths (at most
129), not with the number of chains.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Generic, TypeVar

from ztun.mesh.model import IpNetwork

T = TypeVar("T")
U = TypeVar("U")


class PrefixTable(Generic[T]):
    """Values by network; of equal networks the first one stays."""

    def __init__(self) -> None:
        self._lengths: dict[tuple[int, int], dict[int, T]] = {}
        self._order: dict[int, list[int]] = {4: [], 6: []}
        self.default: T | None = None

    def add(self, network: IpNetwork, value: T) -> T | None:
        """Keep the value for the network, unless there is one already, which is then returned."""
        version, length = network.version, network.prefixlen
        values = self._lengths.get((version, length))
        if values is None:
            values = self._lengths[version, length] = {}
            self._order[version].append(length)
            self._order[version].sort(reverse=True)
        key = int(network.network_address) >> (network.max_prefixlen - length)
        present = values.setdefault(key, value)
        return None if present is value else present

    def find(self, ip: str) -> T | None:
        """The value of the longest network that contains the address, else (and for anything else) the default."""
        if not self._lengths or not ip:
            return self.default
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return self.default
        number, width = int(address), address.max_prefixlen
        for length in self._order[address.version]:
            value = self._lengths[address.version, length].get(number >> (width - length))
            if value is not None:
                return value
        return self.default

    def __bool__(self) -> bool:
        return bool(self._lengths) or self.default is not None


class NameTable(Generic[T]):
    """Values by server name: exact names, ``*.suffix`` patterns, and one for connections without a fitting name."""

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._suffixes: dict[str, T] = {}
        self.default: T | None = None

    def get(self, pattern: str) -> T | None:
        """The value kept for exactly this pattern; ``*`` and the empty pattern are the default."""
        if pattern in ("", "*"):
            return self.default
        return self._suffixes.get(pattern[1:]) if pattern.startswith("*") else self._exact.get(pattern)

    def set(self, pattern: str, value: T) -> None:
        """Keep a value for a pattern."""
        if pattern in ("", "*"):
            self.default = value
        elif pattern.startswith("*"):
            self._suffixes[pattern[1:]] = value
        else:
            self._exact[pattern] = value

    def best(self, name: str) -> T | None:
        """The value of the pattern that fits the name best."""
        found = self._exact.get(name) if name else None
        rest = name
        while found is None and self._suffixes and "." in rest:
            rest = rest.partition(".")[2]
            found = self._suffixes.get(f".{rest}")
        return self.default if found is None else found

    def map(self, make: Callable[[T], U]) -> NameTable[U]:
        """The same patterns with other values."""
        made: NameTable[U] = NameTable()
        made._exact = {name: make(value) for name, value in self._exact.items()}
        made._suffixes = {suffix: make(value) for suffix, value in self._suffixes.items()}
        made.default = None if self.default is None else make(self.default)
        return made

    def patterns(self) -> list[str]:
        """All patterns, for messages."""
        return sorted([*self._exact, *(f"*{suffix}" for suffix in self._suffixes)])

    def __bool__(self) -> bool:
        return bool(self._exact or self._suffixes) or self.default is not None
