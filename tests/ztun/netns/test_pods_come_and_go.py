"""In-pod mode over time: pods that go and come back, proxies that die and proxies that take over."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers.node import NodeProcess
from tests.ztun.agent.pods import Pod
from tests.ztun.netns.connections import APP_PORT, dial, listen
from tests.ztun.netns.inpod import InpodWorld
from tests.ztun.netns.namespaces import missing
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import exchange, lines, wait_for

pytestmark = pytest.mark.netns

REASON = missing()
ROUNDS = 5


@pytest.fixture
def world(tmp_path: Path) -> Iterator[InpodWorld]:
    if REASON:
        pytest.skip(REASON)
    with InpodWorld(tmp_path) as world:
        world.node("near")
        world.node("far")
        yield world


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


@dataclass
class Load:
    """Calls one after the other, each over a connection of its own, until told to stop."""

    wires: Wires
    caller: Pod
    address: tuple[str, int]
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        while not self.stopping:
            try:
                await self._call()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"call {self.calls}: {error!r}")
            self.calls += 1
            self._changed.set()

    async def _call(self) -> None:
        wire = await dial(self.wires, self.caller.namespace, *self.address)
        try:
            text = b"call %d" % self.calls
            await wire.send(text)
            wire.end()
            answer = await wire.receive_all()
            if answer != text:
                raise ConnectionError(f"answered {answer!r}")
        finally:
            await wire.close()
            self.wires.forget(wire)

    async def some_more(self, count: int) -> None:
        """Wait for so many further calls."""
        wanted = self.calls + count
        while self.calls < wanted:
            self._changed.clear()
            await self._changed.wait()


def namespaces_held(process: NodeProcess) -> int:
    """How many network namespaces a process holds open."""
    held = 0
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            held += str(link.readlink()).startswith("net:[")
        except OSError:
            continue
    return held


def come_back(world: InpodWorld, number: int) -> Pod:
    """Replace the pod ``server`` as a StatefulSet does: another uid, the same name and addresses."""
    far = world.nodes["far"]
    served = far.served("server")
    pod = world.replace("server")
    far.enroll("server", pod, uid=f"server-{number}")
    far.proxy.wait_until(lambda: far.served("server") > served, "serving it again")
    return pod


@pytest.mark.asyncio
async def test_a_pod_that_comes_back_with_its_address_has_nothing_of_the_one_before(
    world: InpodWorld, wires: Wires
) -> None:
    client, server = world.pod("client", "near"), world.pod("server", "far")
    bystander = world.pod("bystander", "far")
    await listen(wires, bystander.namespace, port=9100, echo=True)
    load = Load(wires, client, (bystander.ip, 9100))
    standing = await dial(wires, client.namespace, bystander.ip, 9100)
    far = world.nodes["far"]
    proxies = (world.nodes["near"].proxy, far.proxy)
    background = asyncio.create_task(load.run())
    await load.some_more(5)
    for number in range(ROUNDS):
        application = await listen(wires, server.namespace, port=APP_PORT)
        wire = await dial(wires, client.namespace, server.ip)
        there = await application.accept()
        assert there.peer[0] == client.ip
        await exchange(wire, there)  # which leaves a tunnel from one pod to the other
        await load.some_more(5)
        old, server = server, await asyncio.to_thread(come_back, world, number)
        assert await wire.ending() == "reset"
        await asyncio.to_thread(world.unplug, old)
    await standing.send(b"still here")
    assert await standing.receive(10) == b"still here"
    load.stopping = True
    await background
    assert load.failures == []
    # near serves one pod and far two, each with its namespace and a way back from it
    for proxy, pods in zip(proxies, (1, 2), strict=True):
        await wait_for(
            proxy,
            "rid of the namespaces that are gone",
            lambda proxy=proxy, pods=pods: namespaces_held(proxy) <= 2 * pods,  # type: ignore[misc]
        )


@pytest.mark.asyncio
async def test_nothing_is_left_of_a_pod_that_was_withdrawn(world: InpodWorld, wires: Wires) -> None:
    client, server = world.pod("client", "near"), world.pod("server", "near")
    near = world.nodes["near"]
    await asyncio.to_thread(near.withdraw, "server")
    before, contents = near.proxy.descriptors(), server.contents()
    application = await listen(wires, server.namespace, port=APP_PORT)
    for _ in range(ROUNDS):
        await asyncio.to_thread(near.enroll, "server", server)
        wire = await dial(wires, client.namespace, server.ip)
        await exchange(wire, await application.accept())
        await asyncio.to_thread(near.withdraw, "server")
        assert await wire.ending() == "reset"
    await wait_for(near.proxy, "as it was", lambda: near.proxy.descriptors() <= before)
    assert server.contents() == contents


@pytest.mark.asyncio
async def test_while_the_proxy_is_dead_nothing_passes_and_then_pods_heal(
    world: InpodWorld, wires: Wires
) -> None:
    client, server = world.pod("client", "near"), world.pod("server", "near")
    stranger = world.network.two_family_pod("stranger")
    inside, outside = await listen(wires, server.namespace), await listen(wires, stranger.namespace)
    wire = await dial(wires, client.namespace, server.ip)
    await exchange(wire, await inside.accept())
    near = world.nodes["near"]
    near.proxy.signal(signal.SIGKILL)
    await asyncio.to_thread(near.proxy.wait)
    await wire.ending()
    accepted = inside.accepted, outside.accepted
    for caller, ip in ((client, server.ip), (client, stranger.ip), (stranger, server.ip)):
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await dial(wires, caller.namespace, ip)
    assert (inside.accepted, outside.accepted) == accepted
    near.another()
    await asyncio.to_thread(near.proxy.wait_ready)
    for caller, ip, application in (
        (client, server.ip, inside),
        (client, stranger.ip, outside),
        (stranger, server.ip, inside),
    ):
        wire = await dial(wires, caller.namespace, ip)
        there = await application.accept()
        await exchange(wire, there)
        assert there.peer[0] == caller.ip


@pytest.mark.asyncio
async def test_a_second_proxy_takes_over_and_no_new_connection_fails(world: InpodWorld, wires: Wires) -> None:
    client, server = world.pod("client", "near"), world.pod("server", "far")
    stranger = world.network.two_family_pod("stranger")
    await listen(wires, server.namespace, port=APP_PORT, echo=True)
    loads = [Load(wires, caller, (server.ip, APP_PORT)) for caller in (client, client, client, stranger)]
    background = [asyncio.create_task(load.run()) for load in loads]
    for node in world.nodes.values():
        for load in loads:
            await load.some_more(5)
        standing = await dial(wires, client.namespace, server.ip)
        await standing.send(b"hello")
        assert await standing.receive(5) == b"hello"
        first, second = node.proxy, node.another()
        await asyncio.to_thread(second.wait_ready)
        for load in loads:
            await load.some_more(5)
        first.signal(signal.SIGTERM)
        await wait_for(first, "draining", lambda first=first: _says(first, "draining"))  # type: ignore[misc]
        for load in loads:
            await load.some_more(20)
        await standing.send(b"still here")
        assert await standing.receive(10) == b"still here"
        standing.end()
        assert await standing.receive_all() == b""
        assert await asyncio.to_thread(first.wait) == 0
    for load in loads:
        load.stopping = True
    await asyncio.gather(*background)
    assert [load.failures for load in loads] == [[]] * len(loads)


@pytest.mark.asyncio
async def test_pods_that_come_during_a_takeover_belong_to_the_new_proxy(
    world: InpodWorld, wires: Wires
) -> None:
    client = world.pod("client", "near")
    near = world.nodes["near"]
    first, second = near.proxy, near.another()
    await asyncio.to_thread(second.wait_ready)
    server = await asyncio.to_thread(world.pod, "server", "near")
    assert near.served("server") == 1
    assert not any(line.get("workload") == "default/server" for line in lines(first))
    application = await listen(wires, server.namespace)
    wire = await dial(wires, client.namespace, server.ip)
    there = await application.accept()
    first.signal(signal.SIGTERM)
    await wait_for(first, "draining", lambda: _says(first, "draining"))
    await exchange(wire, there)
    await asyncio.to_thread(near.withdraw, "server")
    assert await wire.ending() in ("reset", "eof")


def _says(process: NodeProcess, message: str) -> bool:
    return any(line.get("message") == message for line in lines(process))


@pytest.mark.asyncio
async def test_pods_are_served_while_the_agent_is_away(world: InpodWorld, wires: Wires) -> None:
    client, server = world.pod("client", "near"), world.pod("server", "near")
    application = await listen(wires, server.namespace)
    near = world.nodes["near"]
    standing = await dial(wires, client.namespace, server.ip)
    there = await application.accept()
    near.agent.stop()
    await wait_for(near.proxy, "unready", lambda: not near.proxy._answers_ready())
    await exchange(standing, there)
    wire = await dial(wires, client.namespace, server.ip)
    await exchange(wire, await application.accept())
    await asyncio.to_thread(near.agent.start)
    await wait_for(near.proxy, "ready", near.proxy._answers_ready)
    await exchange(standing, there)
    assert near.served("server") == 1
