"""What applications, logs and somebody on the wire between the nodes see of what a pod sends."""

from __future__ import annotations

import secrets

import pytest

from tests.ztun.nodes.ground import APP_PORT, NEAR, Ground, close, exchange
from tests.ztun.proxy.applications import Wires
from ztun.lab.fabric import OUTSIDE
from ztun.lab.packets import PacketTap
from ztun.mesh.model import join_host_port

pytestmark = [pytest.mark.netns, pytest.mark.asyncio(loop_scope="package")]


def identity(name: str) -> str:
    return f"spiffe://cluster.local/ns/default/sa/{name}"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("by", ["pod", "service"])
@pytest.mark.parametrize("called", ["server", "neighbour"], ids=["other node", "same node"])
async def test_what_a_pod_sends_goes_through_a_tunnel(
    ground: Ground, wires: Wires, called: str, by: str, family: int
) -> None:
    client, server = ground.pod("client"), ground.pod(called)
    application = await ground.listen(wires, called, server.addresses[family == 6])
    marks, word = ground.marks(), secrets.token_hex(8)
    with ground.lab.watch(word, word[::-1]) as watch:
        calling = await ground.dial(wires, "client", *ground.address(called, family, by=by))
        serving = await application.accept()
        assert serving.peer[0] == client.addresses[family == 6]
        assert serving.local == (server.addresses[family == 6], APP_PORT)
        await exchange(calling, serving, word.encode())
        await close(calling, serving)
    assert watch.faults == []
    ends = {
        "src.identity": identity("client"),
        "dst.identity": identity(called),
        "dst.workload": called,
    }
    source = join_host_port(*calling.local)
    # by its source, for another connection of the same pods may end late
    outbound = await ground.record(
        client.node, marks[client.node], "outbound", **ends, **{"src.addr": source}
    )
    inbound = await ground.record(server.node, marks[server.node], "inbound", **ends)
    for record in (outbound, inbound):
        assert record["dst.hbone_addr"].endswith(f":{APP_PORT}")
        assert record.get("error") is None, record
    assert len([one for one in ground.records(NEAR, marks[NEAR]) if one.get("src.addr") == source]) == 1


async def settled(ground: Ground, wires: Wires) -> None:
    """Wait until a later connection was logged: an earlier one would have been, too."""
    marks = ground.marks()
    with pytest.raises(ConnectionError):
        refused = await ground.dial(wires, "client", ground.outside(4), 9)
        await refused.receive(1)
    await ground.record(NEAR, marks[NEAR], "outbound", **{"dst.addr": join_host_port(ground.outside(4), 9)})


async def test_a_nodes_own_traffic_is_not_captured(ground: Ground, wires: Wires) -> None:
    """Nor is that of its proxy, of which nobody would answer the connections otherwise."""
    ip = ground.outside(4)
    application = await ground.listen(wires, OUTSIDE, ip)
    marks = ground.marks()
    calling = await ground.dial(wires, NEAR, ip)
    serving = await application.accept()
    assert serving.peer == calling.local
    await exchange(calling, serving)
    await close(calling, serving)
    await settled(ground, wires)
    assert len(ground.records(NEAR, marks[NEAR])) == 1


async def test_between_the_nodes_there_is_nothing_but_tunnels(ground: Ground, wires: Wires) -> None:
    """Payload of several sizes both ways; every packet on the wire is looked at."""
    application = await ground.listen(wires, "server", ground.pod("server").ip)
    words = [secrets.token_hex(20) for _ in range(4)]
    with ground.lab.watch(*words, *(word[::-1] for word in words)) as watch:
        for word, by in zip(words, ["pod", "service"] * 2, strict=True):
            calling = await ground.dial(wires, "client", *ground.address("server", 4, by=by))
            serving = await application.accept()
            await exchange(calling, serving, word.encode())
            await exchange(serving, calling, word.encode() * 500)
            await close(calling, serving)
    assert watch.faults == []
    assert watch.packets_between_nodes > 0
    assert watch.bytes_up > len(words) * 20_000
    assert watch.bytes_down > len(words) * 20_000


async def test_the_capture_of_packets_would_show_plaintext(ground: Ground, wires: Wires) -> None:
    """The same as above, of a pair that is not in the mesh; or the test above could not fail."""
    ip = ground.pod("drifter").ip
    application = await ground.listen(wires, "drifter", ip)
    word = secrets.token_hex(20)
    taps = [one for one in ground.lab.observers if isinstance(one, PacketTap)]
    for tap in taps:
        tap.outsiders = frozenset()
    try:
        with ground.lab.watch(word) as watch:
            calling = await ground.dial(wires, "stranger", ip)
            await exchange(calling, await application.accept(), word.encode())
    finally:
        for tap in taps:
            tap.outsiders = ground.fabric.outsiders(ground.plan)
    assert watch.readable == {word.encode()}
    assert any(f" -> {ip}:{APP_PORT}" in stray for stray in watch.strays)
