from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.ztun.dns.ground import Ground
from tests.ztun.dns.nameserver import Nameserver


@pytest_asyncio.fixture
async def ground() -> AsyncIterator[Ground]:
    """A proxy without nameservers."""
    async with Ground() as ground:
        yield ground


@pytest_asyncio.fixture
async def nameserver(ground: Ground) -> AsyncIterator[Nameserver]:
    """The proxy's only nameserver."""
    async with Nameserver(ground.addresses) as nameserver:
        ground.behind(nameserver)
        yield nameserver
