"""One running mesh for all tests of this directory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.ztun.nodes.ground import Ground, laid_out
from tests.ztun.proxy.applications import Wires
from ztun.lab.netns import why_not


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    directory = tmp_path_factory.mktemp("nodes")
    ready: asyncio.Future[Ground] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def keep() -> None:
        """Enter and leave in one task, which a fixture's set-up and tear-down are not."""
        async with laid_out(directory) as ground:
            ready.set_result(ground)
            await done.wait()

    keeper = asyncio.create_task(keep())
    await asyncio.wait((keeper, ready), return_when=asyncio.FIRST_COMPLETED)
    if keeper.done():
        await keeper
    yield ready.result()
    done.set()
    with contextlib.suppress(asyncio.CancelledError):
        await keeper


@pytest_asyncio.fixture(loop_scope="package")
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires
