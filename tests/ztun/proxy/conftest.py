from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.mesh import Mesh, Pair


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
