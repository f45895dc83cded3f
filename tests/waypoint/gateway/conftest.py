from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers.web_certificates import WebAuthority
from tests.waypoint.gateway.edge import Edge
from tests.waypoint.gateway.tls import Client
from tests.ztun.proxy.applications import Wires


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    """The applications' connections."""
    async with Wires() as wires:
        yield wires


@pytest.fixture(scope="module")
def web() -> WebAuthority:
    """The CA of clients and servers outside the mesh."""
    return WebAuthority()


@pytest.fixture
def client(edge: Edge, wires: Wires, web: WebAuthority, tmp_path: Path) -> Client:
    return Client(edge, wires, web, tmp_path)
