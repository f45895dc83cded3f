from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.mesh import Mesh, Pair
from tests.ztun.proxy.processes import RealPair


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """An empty mesh."""
    async with Mesh() as mesh:
        yield mesh


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    """A client on one node and a server on another; not started."""
    async with Pair() as pair:
        yield pair


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    """The applications' connections."""
    async with Wires() as wires:
        yield wires


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealPair]:
    """The usual pair as processes; not started."""
    with RealPair(tmp_path) as real:
        yield real
