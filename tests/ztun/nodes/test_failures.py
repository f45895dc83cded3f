"""Proxies that are killed and nodes that are cut off, while pods stay as they are."""

from __future__ import annotations

import secrets

import pytest

from tests.ztun.nodes.ground import APP_PORT, FAR, NEAR, Ground, exchange
from tests.ztun.proxy.applications import Wire, Wires

pytestmark = [pytest.mark.netns, pytest.mark.asyncio(loop_scope="package")]


@pytest.mark.parametrize("node", [NEAR, FAR], ids=["of the client", "of the server"])
async def test_nothing_is_on_the_wire_in_plaintext_while_a_proxy_is_dead_and_pods_heal(
    ground: Ground, wires: Wires, node: str
) -> None:
    """While it is away nothing leaves in plaintext and nothing arrives so."""
    lab, server = ground.lab, ground.pod("server")
    application = await ground.listen(wires, "server", server.ip)
    standing = await ground.dial(wires, "client", server.ip)
    serving = await application.accept()
    await exchange(standing, serving)
    agent = lab.pid(f"{node}-agent")
    word = secrets.token_hex(20)
    here, there = (standing, serving) if node == NEAR else (serving, standing)
    with lab.watch(word) as watch:
        await lab.kill(node)
        try:
            await here.ending()  # by the kernel, as a stream that came to its end
            assert await there.ending() == "reset"
            for caller, address in (
                ("client", (server.ip, APP_PORT)),
                ("client", ground.address("server", 4, by="service")),
                ("stranger", ((ground.pod("neighbour") if node == NEAR else server).ip, APP_PORT)),
            ):
                with pytest.raises(ConnectionError):
                    calling = await ground.dial(wires, caller, *address)
                    await calling.send(word.encode())
                    await calling.receive(1)
            assert application.accepted == 1
        finally:
            await lab.again(node)
    assert watch.readable == set()
    assert watch.strays == set()
    calling = await ground.dial(wires, "client", *ground.address("server", 4, by="service"))
    again = await application.accept()
    assert again.peer[0] == ground.pod("client").ip
    await exchange(calling, again)
    assert lab.pid(f"{node}-agent") == agent


async def test_a_node_that_is_cut_off_is_noticed_and_comes_back(ground: Ground, wires: Wires) -> None:
    """New connections to it fail in time, others go on; what stood before stands afterwards."""
    far = await ground.listen(wires, "server", ground.pod("server").ip)
    near = await ground.listen(wires, "neighbour", ground.pod("neighbour").ip)
    standing = await ground.dial(wires, "client", *ground.address("server", 4, by="service"))
    serving = await far.accept()
    await exchange(standing, serving)
    marks = ground.marks()
    ground.fabric.connect_node(FAR, connected=False)
    try:
        cut_off = await ground.dial(wires, "client", *ground.address("server", 4, by="service"))
        assert await cut_off.ending() == "reset"
        refused = await ground.lab.access_record(NEAR, marks[NEAR], lambda one: "error.code" in one)
        assert refused["error.code"] in ("connect_response_timeout", "connect_timeout")
        calling = await ground.dial(wires, "client", *ground.address("neighbour", 4, by="service"))
        await exchange(calling, await near.accept())
    finally:
        ground.fabric.connect_node(FAR, connected=True)
    await exchange(standing, serving)
    calling = await ground.dial(wires, "client", *ground.address("server", 4, by="service"))
    await calling.send(b"after")
    called = await far.accept()
    while await said(called) != b"after":  # what was asked for while nothing passed, and is given up
        called = await far.accept()
    await exchange(calling, called)


async def said(wire: Wire) -> bytes:
    """The first words; none when the connection is reset."""
    try:
        return await wire.reader.read(5)
    except ConnectionResetError:
        return b""
