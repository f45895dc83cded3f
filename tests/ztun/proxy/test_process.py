"""Ways to see from outside what a proxy is doing."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.ztun.proxy.processes import RealPair, ready_status, wait_for

pytestmark = pytest.mark.net


@pytest.mark.asyncio
async def test_tasks_and_stacks_of_a_running_proxy(real: RealPair) -> None:
    await asyncio.to_thread(real.start)
    near = real.near
    told = near._get(near._admin, "/debug/tasks").text
    assert "Runtime._tick" in told
    assert "Runtime._follow" in told
    near.signal(signal.SIGUSR1)
    await wait_for(near, "showing its stacks", lambda: "most recent call first" in near.log.read_text())
    assert ready_status(near) == 200
