"""The end of a proxy: not ready, no new connections, what stands goes on until the deadline."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest

from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import (
    APP_PORT,
    RealPair,
    completed,
    connect,
    exchange,
    lines,
    metric,
    ready_status,
    wait_for,
)
from ztun.mesh.model import HBONE_PORT

pytestmark = pytest.mark.net

LONG = {"CONNECTION_TERMINATION_DEADLINE": "10m"}


async def start(real: RealPair, **environment: str) -> None:
    real.environment.update(environment)
    await asyncio.to_thread(real.start)


@pytest.mark.asyncio
@pytest.mark.parametrize("node", ["near", "far"])
async def test_connection_goes_on_until_it_ends_and_then_the_proxy_does(
    real: RealPair, wires: Wires, node: str
) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await start(real, **LONG)
    client, server = await connect(real, wires, application)
    process = {"near": real.near, "far": real.far}[node]
    assert ready_status(process) == 200
    process.signal(signal.SIGTERM)
    await wait_for(process, "unready", lambda: ready_status(process) == 500)
    closed = real.entry if node == "near" else (real.server.ip, HBONE_PORT)
    with pytest.raises(ConnectionRefusedError):
        await wires.dial(closed)
    await exchange(client, server)
    client.end()
    assert await server.receive_all() == b""
    server.end()
    assert await client.ending() == "eof"
    assert await asyncio.to_thread(process.wait) == 0
    (record,) = completed(process)
    assert "error" not in record


@pytest.mark.asyncio
@pytest.mark.parametrize("node", ["near", "far"])
async def test_connection_is_cut_at_the_deadline(real: RealPair, wires: Wires, node: str) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await start(real, CONNECTION_TERMINATION_DEADLINE="500ms")
    client, server = await connect(real, wires, application)
    process = {"near": real.near, "far": real.far}[node]
    process.signal(signal.SIGTERM)
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    assert await asyncio.to_thread(process.wait) == 0
    (record,) = completed(process)
    assert (record["level"], record["error.code"]) == ("error", "drain_timeout")
    assert record["error"] == "connection closed due to connection drain"


@pytest.mark.asyncio
async def test_second_signal_ends_at_once(real: RealPair, wires: Wires) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await start(real, **LONG)
    client, server = await connect(real, wires, application)
    real.far.signal(signal.SIGTERM)
    await wait_for(real.far, "unready", lambda: ready_status(real.far) == 500)
    await exchange(client, server)
    real.far.signal(signal.SIGTERM)
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    assert await asyncio.to_thread(real.far.wait) == 0
    (record,) = completed(real.far)
    assert record["error.code"] == "drain_timeout"


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "quitquitquit"])
async def test_idle_proxy_ends_by_itself(real: RealPair, how: str) -> None:
    await start(real, **LONG)
    if how == "quitquitquit":
        answer = httpx.post(f"http://127.0.0.1:{real.far._admin}/quitquitquit", trust_env=False)
        assert answer.status_code == 200
    else:
        real.far.signal(signal.Signals[how])
    assert await asyncio.to_thread(real.far.wait) == 0
    assert not [line for line in lines(real.far) if line["level"] == "error"]


@pytest.mark.asyncio
async def test_idle_tunnel_does_not_hold_a_drain_up(real: RealPair, wires: Wires) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await start(real, **LONG)
    client, server = await connect(real, wires, application)
    client.end()
    await server.receive_all()
    server.end()
    assert await client.ending() == "eof"
    assert metric(real.far, "ztun_tunnels_open", role="server") == 1
    real.far.signal(signal.SIGTERM)
    assert await asyncio.to_thread(real.far.wait) == 0


@pytest.mark.asyncio
async def test_successor_takes_over_without_a_failed_connection(real: RealPair, wires: Wires) -> None:
    """An upgrade: the new proxy listens beside the old one, then the old one drains."""
    application = await wires.echo(real.server.ip, APP_PORT)
    await start(real, **LONG)
    failures = answered = 0
    stop = asyncio.Event()

    async def keep_connecting() -> None:
        nonlocal failures, answered
        while not stop.is_set():
            client = await wires.dial(real.entry)
            try:
                await client.send(b"?")
                answer = await client.receive(1)
            except (ConnectionError, asyncio.IncompleteReadError):
                answer = b""
            answered += answer == b"?"
            failures += answer != b"?"
            await client.close()

    traffic = [asyncio.create_task(keep_connecting()) for _ in range(4)]
    successor = await asyncio.to_thread(real.spawn, "far", name="successor")
    await wait_for(successor, "ready", lambda: ready_status(successor) == 200)
    real.far.signal(signal.SIGTERM)
    assert await asyncio.to_thread(real.far.wait) == 0
    before = answered
    while answered < before + 20:
        await asyncio.sleep(0)
    stop.set()
    await asyncio.gather(*traffic)
    assert failures == 0
    assert application.accepted == answered
    assert completed(successor)
