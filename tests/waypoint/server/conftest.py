from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.waypoint.server.mesh import WaypointMesh
from tests.ztun.proxy.applications import Wires


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[WaypointMesh]:
    """A service behind a waypoint; not started."""
    async with WaypointMesh() as mesh:
        yield mesh


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    """The applications' connections."""
    async with Wires() as wires:
        yield wires
