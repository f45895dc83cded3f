"""What a listener hands over for each query."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ztun.dns.nameservers import Address

Reply: TypeAlias = Callable[[bytes], None]
"""Called once per query with the answer, which is empty when there is to be none."""
Receive: TypeAlias = Callable[[bytes, Address, Reply], None]
"""(query, address it came from, where the answer goes)."""
