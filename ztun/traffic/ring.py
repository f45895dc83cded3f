"""Consistent hashing: a client keeps its endpoint when others come and go.

The hash is BLAKE2b, keyed by nothing: all proxies of this project agree. (Envoy uses xxHash, so a client may get
another endpoint from an Envoy; the API promises affinity per proxy only.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol

from ztun.traffic.balancers import EndpointKey

MAX_POINTS_PER_ENDPOINT = 4096  # bounds the ring when one endpoint is alone; more points spread no better
MAX_TABLE_SIZE = 65_537  # larger Maglev tables take seconds to fill and spread less than 1 percent better


def stable_hash(text: str) -> int:
    """64 bits that depend on the text alone, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class HashTable(Protocol):
    """Endpoints in the order of preference for a hash."""

    def order(self, value: int) -> Iterator[EndpointKey]:
        """Every endpoint once, the best first."""
        ...


class HashRing:
    """Ketama: each endpoint has points on a ring in proportion to its weight; the next point is the choice."""

    def __init__(self, keys: Sequence[EndpointKey], weights: Sequence[float], minimum_size: int) -> None:
        total = sum(weights)
        points: list[tuple[int, EndpointKey]] = []
        for key, weight in zip(keys, weights, strict=True):
            count = min(max(round(minimum_size * weight / total), 1), MAX_POINTS_PER_ENDPOINT)
            points += [(stable_hash(f"{key[0]}_{key[1]}_{number}"), key) for number in range(count)]
        points.sort()
        self._hashes = [point for point, _ in points]
        self._keys = [key for _, key in points]
        self._distinct = len(keys)

    def order(self, value: int) -> Iterator[EndpointKey]:
        """Every endpoint once, clockwise from the hash."""
        start = bisect_left(self._hashes, value)
        seen: set[EndpointKey] = set()
        for offset in range(len(self._keys)):
            key = self._keys[(start + offset) % len(self._keys)]
            if key not in seen:
                seen.add(key)
                yield key
                if len(seen) == self._distinct:
                    return


class MaglevTable:
    """Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", section 3.4.

    1. Each endpoint has its own permutation of the table's slots (offset and skip from two hashes).
    2. In turns, as often as their weight says, endpoints take the first free slot of their permutation.
    3. A hash picks the slot; when its endpoint cannot be used, the following slots are tried.
    """

    def __init__(self, keys: Sequence[EndpointKey], weights: Sequence[float], size: int) -> None:
        size = size if size <= MAX_TABLE_SIZE else MAX_TABLE_SIZE
        self._size = size = max(size, 2)
        self._keys = list(keys)
        names = [f"{ip}_{port}" for ip, port in keys]
        offsets = [stable_hash(name) % size for name in names]
        skips = [stable_hash(f"skip_{name}") % (size - 1) + 1 for name in names]
        largest = max(weights)
        credit = [0.0] * len(keys)
        following = offsets[:]
        self._slots = slots = [-1] * size
        filled = 0
        while filled < size:
            for index, weight in enumerate(weights):
                credit[index] += weight / largest
                if credit[index] < 1:
                    continue
                credit[index] -= 1
                slot = following[index]
                tried = 0
                while slots[slot] >= 0 and tried < size:
                    slot = (slot + skips[index]) % size
                    tried += 1
                if slots[slot] >= 0:
                    # A size that is not prime: this permutation misses the free slots.
                    slot = slots.index(-1)
                slots[slot] = index
                following[index] = (slot + skips[index]) % size
                filled += 1
                if filled == size:
                    break

    def order(self, value: int) -> Iterator[EndpointKey]:
        """Every endpoint once: that of the slot, then of the slots behind it, then those without a slot."""
        seen: dict[int, None] = {}
        start = value % self._size
        for offset in range(self._size):
            index = self._slots[(start + offset) % self._size]
            if index not in seen:
                seen[index] = None
                yield self._keys[index]
                if len(seen) == len(self._keys):
                    return
        for index, key in enumerate(self._keys):
            if index not in seen:
                yield key
