"""Certificates and roots that change under tunnels that stand, by way of the CA directory both proxies watch."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from watchfiles import awatch

from certs.directory import CaDirectory
from tests.peers.node import Forward, NodeProcess, Pod
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.processes import (
    APP_PORT,
    RealPair,
    completed,
    connect,
    exchange,
    metric,
    wait_for,
)

pytestmark = pytest.mark.net


def certificate_entry(process: NodeProcess, name: str) -> dict[str, Any]:
    """What the admin dump says of one identity."""
    entries: list[dict[str, Any]] = process.admin("/config_dump")["certificates"]
    (entry,) = [one for one in entries if one["identity"].endswith(f"/sa/{name}")]
    return entry


def serial_of(process: NodeProcess, name: str) -> int:
    return int(certificate_entry(process, name)["certChain"][0]["serialNumber"])


def roots_of(process: NodeProcess, name: str) -> int:
    return len(certificate_entry(process, name)["rootCerts"])


async def written_below(directory: Path, stop: asyncio.Event) -> dict[Path, bytes]:
    """Every file that is written below a directory until ``stop``, with what was last seen in it."""
    found: dict[Path, bytes] = {}
    async for changes in awatch(directory, stop_event=stop, step=1, debounce=1):
        for _, name in changes:
            path = Path(name)
            if path.is_file():
                found[path] = path.read_bytes()
            else:
                found.setdefault(path, b"")  # written and removed again
    return found


@pytest.mark.asyncio
async def test_keys_of_workloads_are_never_written_to_a_disk(
    real: RealPair, wires: Wires, tmp_path: Path
) -> None:
    """Whatever the two proxies write, temporary files and what they leave in their working directory included."""
    private = tmp_path / "private"
    private.mkdir()
    real.environment["TMPDIR"] = str(private)
    stop = asyncio.Event()
    watching = asyncio.create_task(written_below(tmp_path, stop))
    application = await wires.application(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    await connect(real, wires, application)
    for process, name in ((real.near, "client"), (real.far, "server")):
        assert certificate_entry(process, name)["state"] == "Available"
    stop.set()
    seen = await watching
    assert [path for path, data in seen.items() if b"PRIVATE KEY" in data] == []
    assert {path.name for path in seen if path.is_relative_to(private)} == set()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.parent for path in kept} == {real.authority.directory}, "the CA's own, made by the test"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("revoked", "reporter"), [("client", "destination"), ("server", "source")], ids=["client", "server"]
)
async def test_revoked_certificate_cuts_the_tunnel_that_stands(
    real: RealPair, wires: Wires, revoked: str, reporter: str
) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, application)
    holder, judge = (real.near, real.far) if revoked == "client" else (real.far, real.near)
    assert metric(judge, "istio_crl_policy_rejections_total") == 0
    directory = CaDirectory(real.authority.directory)
    directory.revoke(serial_of(holder, revoked), None, now=datetime.now(UTC))

    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    await wait_for(judge, "done with the connection", lambda: len(completed(judge)) == 1)
    (record,) = completed(judge)
    assert (record["level"], record["error.code"]) == ("error", "peer_revoked")
    assert metric(judge, "istio_crl_policy_rejections_total", reporter=reporter) == 1
    assert metric(judge, "istio_tcp_connections_failed_total", response_flags="CERT_REVOKED") == 1

    again = await wires.dial(real.entry)
    assert await again.ending() == "reset"
    role = "server" if revoked == "client" else "client"
    assert metric(judge, "ztun_handshake_failures_total", role=role, code="peer_revoked") >= 1
    assert application.accepted == 1


@pytest.mark.asyncio
async def test_revoking_somebody_else_disturbs_nobody(real: RealPair, wires: Wires) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, application)
    CaDirectory(real.authority.directory).revoke(12345, None, now=datetime.now(UTC))
    for process in (real.near, real.far):
        await wait_for(
            process,
            "aware of the list",
            lambda process=process: "trust bundle changed" in process.log_tail(),  # type: ignore[misc]
        )
    await exchange(client, server)
    await connect(real, wires, application)


@pytest.mark.asyncio
async def test_root_is_added_and_retired_without_dropping_a_tunnel(real: RealPair, wires: Wires) -> None:
    application = await wires.application(real.server.ip, APP_PORT)
    late = Pod("late", real.addresses.take(), "near")
    late_entry = real.forward_port()
    real.forwards.append(Forward(late_entry, (real.server.ip, APP_PORT), late))
    await asyncio.to_thread(real.start)
    client, server = await connect(real, wires, application)
    directory = CaDirectory(real.authority.directory)

    directory.rotate(now=datetime.now(UTC))
    for process, name in ((real.near, "client"), (real.far, "server")):
        await wait_for(
            process,
            "trusting both roots",
            lambda process=process, name=name: roots_of(process, name) == 2,  # type: ignore[misc]
        )
    await exchange(client, server)
    # a pod with a certificate under the new root, talking to one with a certificate under the old
    real.pods.append(late)
    real.write()
    newer = await wires.dial(late_entry)
    newer_server = await application.accept()
    await exchange(newer, newer_server)
    assert newer_server.peer[0] == late.ip

    directory.retire()
    for process, name in ((real.near, "client"), (real.far, "server")):
        await wait_for(
            process,
            "trusting the new root only",
            lambda process=process, name=name: roots_of(process, name) == 1,  # type: ignore[misc]
        )
    await exchange(client, server)
    await exchange(newer, newer_server)
    assert metric(real.near, "ztun_pool_dials_total") == 2
    assert not completed(real.near)
