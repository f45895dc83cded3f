"""A proxy without a descriptor left: unready, not busy, no open connection harmed, and well again by itself."""

from __future__ import annotations

import asyncio
import resource

import httpx
import pytest

from tests.ztun.proxy.applications import Wire, Wires
from tests.ztun.proxy.processes import APP_PORT, RealPair, lines, wait_for

pytestmark = pytest.mark.net

ROOM = 20  # descriptors
CROWD = 3 * ROOM


def limit_of(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


async def echoed(client: Wire, data: bytes) -> None:
    await client.send(data)
    assert await client.receive(len(data)) == data


@pytest.mark.asyncio
async def test_soft_limit_is_raised_to_the_hard_one_and_logged(real: RealPair) -> None:
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    inherited = (min(own[0], own[1] // 2), own[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, inherited)
    try:
        await asyncio.to_thread(real.start)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)
    assert limit_of(real.near.pid) == (own[1], own[1])
    (line,) = [line for line in lines(real.near) if line.get("message") == "limit of open files"]
    assert (int(line["before"]), int(line["now"])) == inherited


@pytest.mark.asyncio
async def test_proxy_without_descriptors_is_unready_and_recovers(real: RealPair, wires: Wires) -> None:
    await wires.echo(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    client = await wires.dial(real.entry)
    await echoed(client, b"before")
    near = real.near
    # the probe's connection is older than the shortage; a new one would not be accepted
    with httpx.Client(base_url=f"http://127.0.0.1:{near._readiness}", trust_env=False) as probe:

        def readiness() -> tuple[int, str]:
            answer = probe.get("/healthz/ready")
            return answer.status_code, answer.text

        assert readiness() == (200, "ready\n")
        generous = limit_of(near.pid)
        scarce = near.descriptors() + ROOM
        resource.prlimit(near.pid, resource.RLIMIT_NOFILE, (scarce, generous[1]))
        crowd = [await wires.dial(real.entry) for _ in range(CROWD)]
        short = (500, "not ready, pending: file descriptors\n")
        await wait_for(near, "out of descriptors", lambda: readiness() == short)
        await echoed(client, b"during")
        for one in crowd:
            one.reset()
        await wait_for(near, "ready again", lambda: readiness() == (200, "ready\n"))
    await echoed(client, b"afterwards")
    await echoed(await wires.dial(real.entry), b"a new connection")
    said = [line["message"] for line in lines(near)]
    assert said.count("no file descriptor is left, new connections wait") == 1
    assert said.count("there are file descriptors again") == 1
