"""Which traffic a node proxy sends to a waypoint: labels of services, namespaces and workloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.waypoint.server.ground import (
    APP_PORT,
    SERVICE_PORT,
    VIPS,
    Documents,
    Ground,
    ask,
    gateway,
    logged,
    sample,
    service,
)

pytestmark = pytest.mark.net

USE = {"istio.io/use-waypoint": "waypoint"}
SELECTOR = {"app": "echo-server", "version": "prod"}
VIP_ENTRY, POD_ENTRY = ("telnet-client", "echo-server"), ("telnet-client", "pod")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("labels")) as ground:
        ground.forward(ground.clients[0], "pod", (ground.prod.ip, APP_PORT))
        ground.start()
        yield ground


def namespace(**labels: str) -> Mapping[str, Any]:
    found = {
        "istio.io/dataplane-mode": "ambient",
        **{f"istio.io/{key}": value for key, value in labels.items()},
    }
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": found}}


def echo(**labels: str) -> Mapping[str, Any]:
    return service(
        "echo-server", SELECTOR, labels={f"istio.io/{key}": value for key, value in labels.items()}
    )


def seen(ground: Ground) -> float:
    """How many connections the waypoint has had."""
    return sample(ground.waypoint, "istio_tcp_connections_opened_total", reporter="waypoint")


async def mesh(
    ground: Ground,
    *documents: Mapping[str, Any],
    purpose: str = "service",
    pod: Mapping[str, str] | None = None,
) -> None:
    """Apply documents, with ``pod`` as further labels of the server's pod."""
    labels = {**SELECTOR, **(pod or {})}
    ground.pods = [replace(one, labels=labels) if one.name == "prod" else one for one in ground.pods]
    ground.gateway = gateway(purpose)
    ground.services = list(documents)
    await ground.apply()


async def through(ground: Ground, entry: tuple[str, str]) -> bool:
    """Whether a connection that is answered went through the waypoint."""
    before = seen(ground)
    assert await ask(ground.entries[entry]) == "hello test"
    return seen(ground) > before


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("documents", "purpose", "pod", "by_vip", "by_pod"),
    [
        ([echo()], "service", {}, False, False),
        ([echo(**{"use-waypoint": "waypoint"})], "service", {}, True, False),
        ([namespace(**{"use-waypoint": "waypoint"}), echo()], "service", {}, True, False),
        (
            [namespace(**{"use-waypoint": "waypoint"}), echo(**{"use-waypoint": "none"})],
            "service",
            {},
            False,
            False,
        ),
        ([echo()], "workload", USE, False, True),
        ([namespace(**{"use-waypoint": "waypoint"}), echo()], "workload", {}, False, True),
        ([namespace(**{"use-waypoint": "waypoint"}), echo()], "all", {}, True, True),
        ([namespace(**{"use-waypoint": "waypoint"}), echo()], "none", {}, False, False),
        (
            [namespace(**{"use-waypoint": "waypoint"}), echo()],
            "all",
            {"istio.io/use-waypoint": "none"},
            True,
            False,
        ),
    ],
    ids=[
        "nobody names it",
        "service",
        "namespace",
        "service opts out",
        "workload",
        "namespace for workloads",
        "all",
        "none",
        "workload opts out",
    ],
)
async def test_labels_say_what_goes_through_the_waypoint(
    ground: Ground, documents: Documents, purpose: str, pod: Mapping[str, str], by_vip: bool, by_pod: bool
) -> None:
    await mesh(ground, *documents, purpose=purpose, pod=pod)
    assert await through(ground, VIP_ENTRY) is by_vip
    assert await through(ground, POD_ENTRY) is by_pod


@pytest.mark.asyncio
async def test_an_unknown_waypoint_is_refused_not_passed_by(ground: Ground) -> None:
    await mesh(ground, echo(**{"use-waypoint": "typo"}), pod={"istio.io/use-waypoint": "typo"})
    for entry in (VIP_ENTRY, POD_ENTRY):
        assert await ask(ground.entries[entry]) is None
    await logged(ground.near, lambda one: one.get("error.code") == "unknown_waypoint")


@pytest.mark.asyncio
async def test_a_waypoint_without_pods_is_refused_not_passed_by(ground: Ground) -> None:
    pods = ground.pods
    ground.pods = [one for one in pods if one.name != "waypoint"]
    await mesh(ground, echo(**{"use-waypoint": "waypoint"}))
    assert await ask(ground.entries[VIP_ENTRY]) is None
    ground.pods = [*ground.pods, ground.waypoint_pod]
    await ground.apply()
    assert await through(ground, VIP_ENTRY)


@pytest.mark.asyncio
async def test_a_policy_attached_to_the_service_is_enforced(ground: Ground) -> None:
    denial = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "no", "namespace": "default"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "echo-server"}],
            "action": "DENY",
            "rules": [
                {
                    "from": [{"source": {"principals": ["cluster.local/ns/default/sa/telnet-client"]}}],
                    "to": [{"operation": {"ports": [str(SERVICE_PORT)]}}],
                }
            ],
        },
    }
    await mesh(ground, echo(**{"use-waypoint": "waypoint"}), denial)
    assert await ask(ground.entries[VIP_ENTRY]) is None
    assert await ask(ground.entries["telnet-client-2", "echo-server"]) == "hello test"
    await logged(ground.waypoint, lambda one: one.get("error.code") == "policy_rejection")
    assert VIPS["echo-server"] in str(
        await logged(ground.near, lambda one: one.get("error.code") == "http_status_401")
    )
