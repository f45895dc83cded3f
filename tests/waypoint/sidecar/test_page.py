"""The examples on live traffic in sidecar mode: every attribute counts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.peers.traffic import ROOT
from tests.waypoint.server.ground import ask, example, logged
from tests.waypoint.server.test_page import (
    answers,
    is_share,
    plain_services,
    split_services,
    two_services,
)
from tests.waypoint.sidecar.ground import SidecarGround

pytestmark = pytest.mark.net

CLIENT, OTHER, FOREIGN = "telnet-client", "telnet-client-2", "telnet-client-foo"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarGround]:
    with SidecarGround(tmp_path_factory.mktemp("sidecars")) as ground:
        ground.services = plain_services(ground)
        ground.start()
        yield ground


async def answered(ground: SidecarGround) -> dict[str, str | None]:
    """What each client gets from echo-server."""
    return {client: await ask(ground.entries[client, "echo-server"]) for client in (CLIENT, OTHER, FOREIGN)}


def analyzed(ground: SidecarGround) -> list[dict[str, Any]]:
    """What ``waypoint analyze`` says of the configuration."""
    command = [sys.executable, "-m", "waypoint", "analyze", str(ground.config), "-o", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("variant", ["as-printed", "corrected"])
@pytest.mark.parametrize(
    ("name", "routed"),
    [
        ("destinationSubnets", {CLIENT, OTHER, FOREIGN}),
        ("port", {CLIENT, OTHER, FOREIGN}),
        ("sourceLabels", {CLIENT}),
        ("source-namespace", {FOREIGN}),
    ],
)
async def test_a_match_sends_those_that_it_names_to_the_other_service(
    ground: SidecarGround, variant: str, name: str, routed: set[str]
) -> None:
    ground.services = plain_services(ground)
    await ground.apply(example(f"{variant}/{name}"))
    assert await answered(ground) == {
        client: "hello-2 test" if client in routed else "hello test" for client in (CLIENT, OTHER, FOREIGN)
    }
    assert await ask(ground.entries[CLIENT, "echo-server-2"]) == "hello-2 test"


@pytest.mark.asyncio
async def test_rules_of_gateways_only_leave_the_mesh_alone(ground: SidecarGround) -> None:
    ground.services = plain_services(ground)
    await ground.apply(
        example("corrected/ingressgateway-1", "corrected/ingressgateway-2", "corrected/ingressgateway-vs")
    )
    assert set((await answered(ground)).values()) == {"hello test"}


@pytest.mark.asyncio
async def test_weights_as_printed_are_of_http_and_so_ignored(ground: SidecarGround) -> None:
    ground.services = split_services()
    await ground.apply(example("as-printed/echoserver-vs", "as-printed/echoserver-dr"))
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.5)
    finding = await logged(ground.sidecars[CLIENT], lambda one: one.get("code") == "PROTO-HTTP-ON-TCP")
    assert "mesh.yaml:" in finding["message"]
    findings = await asyncio.to_thread(analyzed, ground)
    assert {"PROTO-HTTP-ON-TCP", "IST0174"} <= {one["code"] for one in findings}


@pytest.mark.asyncio
async def test_weights_over_subsets_that_do_not_exist_close_the_connection(ground: SidecarGround) -> None:
    ground.services = split_services()
    await ground.apply(example("corrected/echoserver-vs", "as-printed/echoserver-dr"))
    assert await answers(ground, 20) == {None: 20}
    refusal = await logged(ground.sidecars[CLIENT], lambda one: one.get("error.code") == "route_no_subset")
    assert "DST-NOSUBSET" in refusal["error.hint"]


@pytest.mark.asyncio
async def test_corrected_weights_are_shares_of_the_connections(ground: SidecarGround) -> None:
    ground.services = split_services()
    await ground.apply(example("corrected/echoserver-vs", "corrected/echoserver-dr"))
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.8)


@pytest.mark.asyncio
async def test_weights_over_two_services_are_shares_of_the_connections(ground: SidecarGround) -> None:
    ground.services = split_services()
    await ground.apply(two_services())
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.8)


@pytest.mark.asyncio
async def test_the_sidecar_reports_the_connection_with_both_ends(ground: SidecarGround) -> None:
    ground.services = plain_services(ground)
    await ground.apply(example("corrected/sourceLabels"))
    assert await ask(ground.entries[CLIENT, "echo-server"], "reported") == "hello-2 reported"
    record = await logged(
        ground.sidecars[CLIENT],
        lambda one: one.get("dst.workload") == "second" and one.get("message") == "connection complete",
    )
    assert record["direction"] == "outbound"
    assert record["src.workload"] == CLIENT
    assert record["dst.service"] == "echo-server-2.default.svc.cluster.local"
    assert record["dst.identity"] == "spiffe://cluster.local/ns/default/sa/second"
