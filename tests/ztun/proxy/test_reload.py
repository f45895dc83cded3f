"""Changed files under running proxies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.peers.node import Forward, Pod
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import (
    APP_PORT,
    RealPair,
    completed,
    connect,
    exchange,
    lines,
    wait_for,
)
from ztun.mesh.model import HBONE_PORT

pytestmark = pytest.mark.net


def policy(name: str, action: str, **rule: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"action": action, "rules": [rule]},
    }


def loads(real: RealPair) -> list[int]:
    """How often each proxy has taken new configuration."""
    return [
        sum(line.get("message") == "configuration loaded" for line in lines(process))
        for process in (real.near, real.far)
    ]


@pytest.mark.asyncio
async def test_pod_is_added_and_removed(real: RealPair, wires: Wires) -> None:
    added = Pod("added", real.addresses.take(), "far")
    entry = real.forward_port()
    real.forwards.append(Forward(entry, (added.ip, APP_PORT), real.client))
    application = await wires.application(added.ip, APP_PORT)
    others = await wires.application(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, others)
    with pytest.raises(ConnectionRefusedError):
        await wires.dial((added.ip, HBONE_PORT))

    real.pods.append(added)
    real.write()
    await wait_for(real.far, "serving the pod", lambda: "default/added" in real.far.log_tail())
    await wait_for(real.near, "aware of the pod", lambda: loads(real)[0] >= 1)
    to_added = await wires.dial(entry)
    at_added = await application.accept()
    await exchange(to_added, at_added)
    assert at_added.peer[0] == real.client.ip

    real.pods.remove(added)
    real.write()
    assert await at_added.ending() == "reset"
    assert await to_added.ending() == "reset"
    await wait_for(real.far, "done with it", lambda: len(completed(real.far)) == 1)
    assert completed(real.far)[0]["error.code"] == "workload_gone"
    with pytest.raises(ConnectionRefusedError):
        await wires.dial((added.ip, HBONE_PORT))
    await exchange(client, server)


@pytest.mark.asyncio
async def test_broken_file_keeps_the_last_good_state(real: RealPair, wires: Wires) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, application)
    good = (real.directory / "mesh" / "mesh.yaml").read_text()
    real.replace(good + "---\nkind: Pod\nmetadata: [unclosed\n")

    def complains() -> bool:
        return any("mesh.yaml:" in line.get("message", "") for line in lines(real.far))

    await wait_for(real.far, "complaining", complains)
    await wait_for(real.near, "loaded", lambda: loads(real)[0] >= 1)
    await exchange(client, server)
    await connect(real, wires, application)

    # what is good again counts again
    real.documents.append(policy("nobody", "DENY", to=[{"operation": {"ports": [str(APP_PORT)]}}]))
    real.write()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"


@pytest.mark.asyncio
async def test_policy_in_a_file_closes_what_it_denies(real: RealPair, wires: Wires) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    friend = Pod("friend", real.addresses.take(), "near")
    entry = real.forward_port()
    real.pods.append(friend)
    real.forwards.append(Forward(entry, (real.server.ip, APP_PORT), friend))
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, application)
    stays = await wires.dial(entry)
    stays_server = await application.accept()

    principal = "cluster.local/ns/default/sa/client"
    real.documents.append(policy("not-you", "DENY", **{"from": [{"source": {"principals": [principal]}}]}))
    real.write()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    await wait_for(real.far, "done with it", lambda: len(completed(real.far)) == 1)
    (record,) = completed(real.far)
    assert record["error.code"] == "policy_late_rejection"
    assert record["error"] == (
        "connection closed due to policy change: explicitly denied by: default/not-you"
    )
    await exchange(stays, stays_server)

    again = await wires.dial(real.entry)
    assert await again.ending() == "reset"
    real.documents.clear()
    real.write()
    await wait_for(real.far, "loaded again", lambda: loads(real)[1] >= 2)
    await connect(real, wires, application)


@pytest.mark.asyncio
async def test_peer_authentication_in_a_file(real: RealPair, wires: Wires) -> None:
    """STRICT says nothing against members of the mesh."""
    application = await wires.application(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, application)
    real.documents.append(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": "default"},
            "spec": {"mtls": {"mode": "STRICT"}},
        }
    )
    real.write()
    await wait_for(real.far, "loaded", lambda: loads(real)[1] >= 1)
    await exchange(client, server)
    await connect(real, wires, application)
