"""SOCKS5 on the loopback interface of each pod, where it is switched on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.ztun.netns.connections import dial, listen
from tests.ztun.netns.inpod import SERVICE_PORT, InpodWorld
from tests.ztun.netns.namespaces import missing
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import exchange

pytestmark = pytest.mark.netns

REASON = missing()
NAME = b"echo.default.svc.cluster.local"


@pytest.mark.asyncio
async def test_a_pod_enters_the_mesh_by_name(tmp_path: Path) -> None:
    if REASON:
        pytest.skip(REASON)
    with InpodWorld(tmp_path, environment={"UNSTABLE_ENABLE_SOCKS5": "true"}) as world:
        await asyncio.to_thread(world.node, "near")
        client, server = world.pod("client", "near"), world.pod("server", "near")
        async with Wires() as wires:
            application = await listen(wires, server.namespace)
            wire = await dial(wires, client.namespace, "127.0.0.1", 15080)
            await wire.send(b"\x05\x01\x00")
            assert await wire.receive(2) == b"\x05\x00"
            await wire.send(b"\x05\x01\x00\x03" + bytes([len(NAME)]) + NAME + SERVICE_PORT.to_bytes(2, "big"))
            there = await application.accept()
            assert (await wire.receive(10))[:2] == b"\x05\x00"
            assert there.peer[0] == client.ip
            await exchange(wire, there)
            with pytest.raises(ConnectionRefusedError):
                await dial(wires, client.namespace, client.ip, 15080)
