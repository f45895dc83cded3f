"""Pods that come and go while others talk: what is left of them on the whole machine."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ztun.nodes.ground import FAR, Ground, close, exchange
from tests.ztun.proxy.applications import Wire, Wires
from ztun.agent.control import ask
from ztun.lab.programs import agent_sockets
from ztun.lab.reservation import RESOLVERS
from ztun.lab.topology import PodPlan

pytestmark = [pytest.mark.netns, pytest.mark.asyncio(loop_scope="package")]

ROUNDS = 2
STANDING = 3  # connections to either server that are never to notice anything


class Traffic:
    """Connections that ask and answer without end; an error of any of them comes out of ``running``."""

    def __init__(self, ground: Ground, wires: Wires) -> None:
        self._ground = ground
        self._wires = wires
        self._exchanged: Counter[int] = Counter()
        self._stop = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start, and stop in the end with every connection closed in order."""
        ground, wires = self._ground, self._wires
        async with asyncio.TaskGroup() as group:
            number = 0
            for called in ("server", "neighbour"):
                application = await ground.listen(wires, called, ground.pod(called).ip)
                for _ in range(STANDING):
                    client = await ground.dial(wires, "client", *ground.address(called, 4, by="service"))
                    group.create_task(self._talk(number, client, await application.accept()))
                    number += 1
            yield
            self._stop = True

    async def progress(self) -> None:
        """Wait until every connection has carried something since now."""
        before = Counter(self._exchanged)
        while any(self._exchanged[number] <= before[number] for number in range(2 * STANDING)):
            await asyncio.sleep(0)

    async def _talk(self, number: int, client: Wire, server: Wire) -> None:
        while not self._stop:
            await exchange(client, server)
            self._exchanged[number] += 1
        await close(client, server)


class Guest:
    """A pod that comes and goes, always with the same address."""

    def __init__(self, ground: Ground, number: int) -> None:
        name = f"guest-{number}"
        network = ground.fabric.addresses
        self.plan = PodPlan(
            namespace="default",
            name=name,
            owner=name,
            node=FAR,
            ip=str(network.pods[FAR][200]),
            service_account=name,
            ip6=str(network.pods6[FAR][200]),
            netns=f"{ground.fabric.network.prefix}-{name}",
        )
        self._ground = ground

    def document(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.plan.name,
                "namespace": "default",
                "annotations": {"ztun.io/netns": self.plan.netns},
            },
            "spec": {"nodeName": FAR, "serviceAccountName": self.plan.name},
            "status": {
                "phase": "Running",
                "podIP": self.plan.ip,
                "podIPs": [{"ip": one} for one in self.plan.addresses],
            },
        }

    async def come(self) -> None:
        """Until it is in the mesh and everybody knows."""
        self._ground.fabric.add_pods([self.plan])
        await self._ground.lab.change("guest", [self.document()])
        await self._until(lambda states: states.get(self.plan.name) == "enrolled")

    async def go(self) -> None:
        """Until nobody knows it any more."""
        await self._ground.lab.change("guest", None)
        await self._until(lambda states: self.plan.name not in states)
        self._ground.fabric.remove_pod(self.plan)

    async def _until(self, wanted: Any) -> None:
        runtime = self._ground.lab.fabric.runtime
        assert runtime is not None
        control = agent_sockets(runtime, FAR).control
        while True:
            answer = await asyncio.to_thread(ask, control, {"command": "list"})
            if wanted({one["pod"]: one["state"] for one in answer["enrolments"]}):
                return


async def test_a_pod_comes_and_goes_with_the_same_address_and_nobody_else_notices(
    ground: Ground, wires: Wires
) -> None:
    traffic = Traffic(ground, wires)
    async with traffic.running():
        await ground.listen(wires, "client", ground.pod("client").ip, echo=True)
        await visit(ground, 0)  # from now on everything there is to be opened is open
        before = await settled(ground)
        for number in range(1, ROUNDS + 1):
            await visit(ground, number)
            await traffic.progress()
        assert await settled(ground, before) == before


async def visit(ground: Ground, number: int) -> None:
    """A pod comes, calls and is called under its own identity, and goes while its connections are open."""
    guest = Guest(ground, number)
    await guest.come()
    name = guest.plan.name
    marks = ground.marks()
    async with Wires() as wires:
        for ip, own in zip(guest.plan.addresses, ground.pod("client").addresses, strict=True):
            application = await ground.listen(wires, name, ip)
            calling = await ground.dial(wires, "client", ip)
            serving = await application.accept()
            assert serving.peer[0] == own
            await exchange(calling, serving)
        asking = await ground.dial(wires, name, ground.pod("client").ip)
        await asking.send(b"who am I")
        asking.end()
        assert await asking.receive_all() == b"who am I"
        record = await ground.record(FAR, marks[FAR], "outbound", **{"src.workload": name})
        assert record["src.identity"] == f"spiffe://cluster.local/ns/default/sa/{name}"
        await guest.go()


async def settled(ground: Ground, wanted: dict[str, Any] | None = None) -> dict[str, Any]:
    """What there is on this machine because of the mesh; waits until it is as wanted, or as long as it changes."""
    last: dict[str, Any] = {}
    while True:
        now = await asyncio.to_thread(inventory, ground)
        if now == (last if wanted is None else wanted):
            return now
        last = now


def inventory(ground: Ground) -> dict[str, Any]:
    found: dict[str, Any] = {}
    prefix = ground.fabric.network.prefix
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    found["namespaces"] = {name for name in names if name.startswith(prefix)}
    found["resolvers"] = {one.name for one in RESOLVERS.glob(f"{prefix}*")}
    for node in ground.plan.nodes:
        for program in (node.name, f"{node.name}-agent"):
            pid = ground.lab.pid(program)
            found[f"descriptors of {program}"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            found[f"threads of {program}"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    for where in found["namespaces"]:
        for command in (
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "nft list ruleset",
            "ip -br link",
        ):
            whole = ["ip", "netns", "exec", where, *command.split()]
            text = subprocess.run(whole, capture_output=True, text=True, check=True).stdout
            found[f"{command} in {where}"] = text.splitlines()
    return found
