"""A reproducible stream of bytes: both ends of a transfer make it from the same seed and compare digests."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

PERIOD_BYTES = 1_000_003  # prime, so that no power-of-two buffer of a proxy lines up with a repetition
CHUNK_BYTES = 256 * 1024


@lru_cache(maxsize=8)
def _period(seed: int) -> memoryview:
    return memoryview(random.Random(seed).randbytes(PERIOD_BYTES))


def pattern(seed: int, count: int) -> Iterator[memoryview]:
    """``count`` bytes in pieces of at most ``CHUNK_BYTES``."""
    block, position = _period(seed), 0
    while count > 0:
        piece = block[position : position + min(CHUNK_BYTES, count)]
        position = (position + len(piece)) % PERIOD_BYTES
        count -= len(piece)
        yield piece


@dataclass(slots=True)
class Tally:
    """How many bytes passed and their SHA-256; with ``hashed`` false only the count."""

    hashed: bool = True
    count: int = 0
    _sha: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next piece of the stream."""
        self.count += len(piece)
        if self.hashed:
            self._sha.update(piece)

    def __str__(self) -> str:
        return f"{self.count} {self._sha.hexdigest() if self.hashed else '-'}"

    @classmethod
    def of_pattern(cls, seed: int, count: int) -> Self:
        """The tally of ``pattern(seed, count)``."""
        tally = cls()
        for piece in pattern(seed, count):
            tally.add(piece)
        return tally
