"""Pods with a sidecar of their own are reached by everybody, and another engine can be put in."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.traffic import ROOT
from tests.waypoint.server.ground import ask, logged
from tests.waypoint.server.test_page import split_services
from tests.waypoint.sidecar.ground import SidecarGround
from ztun.routing import ENGINE_GROUP

pytestmark = pytest.mark.net

PLUGIN = ROOT / "compose" / "examples" / "engine-plugin"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarGround]:
    """With the engine of the example, installed as an installer would: a module and its dist-info."""
    site = tmp_path_factory.mktemp("site")
    install(site)
    with SidecarGround(
        tmp_path_factory.mktemp("reach"), engine="canary", telnet_client_2={"canary": "true"}
    ) as ground:
        ground.services = split_services()
        ground.environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
        ground.start()
        yield ground


def install(site: Path) -> None:
    info = site / "ztun_canary_engine-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ztun-canary-engine\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text(f"[{ENGINE_GROUP}]\ncanary = canary_engine:CanaryEngine\n")
    shutil.copy(PLUGIN / "canary_engine.py", site)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("client", "answer"), [("telnet-client", "hello test"), ("telnet-client-2", "hello-gray test")]
)
async def test_an_installed_engine_decides(ground: SidecarGround, client: str, answer: str) -> None:
    seen = Counter([await ask(ground.entries[client, "echo-server"]) for _ in range(20)])
    assert seen == {answer: 20}


@pytest.mark.asyncio
@pytest.mark.parametrize("client", ["telnet-client", "ambient-client"])
@pytest.mark.parametrize(("server", "say"), [("prod", "hello"), ("gray", "hello-gray")])
async def test_a_pod_is_reached_by_its_address_over_a_tunnel(
    ground: SidecarGround, client: str, server: str, say: str
) -> None:
    line = f"{client}-to-{server}"
    assert await ask(ground.entries[client, server], line) == f"{say} {line}"
    proxy = ground.far if client == "ambient-client" else ground.sidecars[client]
    record = await logged(
        proxy,
        lambda one: (
            one.get("message") == "connection complete"
            and one.get("direction") == "outbound"
            and one.get("src.workload") == client
            and one.get("dst.workload") == server
        ),
    )
    assert record["dst.hbone_addr"].endswith(":9000")
    assert record["dst.identity"] == f"spiffe://cluster.local/ns/default/sa/{server}"
