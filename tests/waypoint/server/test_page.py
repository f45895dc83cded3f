"""The examples on live traffic through a waypoint: a node proxy, the waypoint, another node proxy, echo servers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy

import pytest

from tests.waypoint.server.ground import Documents, Ground, ask, example, logged, records, sample, service

pytestmark = pytest.mark.net

CONNECTIONS = 600
AT_ONCE = 32
OTHERS = {"AMB-MATCH-SUBNETS", "AMB-MATCH-PORT", "AMB-MATCH-LABELS", "AMB-MATCH-NAMESPACE"}
CLIENTS = ("telnet-client", "telnet-client-2", "telnet-client-foo")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("page")) as ground:
        # in the examples of one attribute, echo-server has one pod
        ground.services = plain_services(ground)
        ground.start()
        yield ground


def plain_services(ground: Ground) -> Documents:
    return [
        service("echo-server", {"app": "echo-server", "version": "prod"}),
        service("echo-server-2", {"app": "echo-server-2"}),
    ]


def split_services() -> Documents:
    return [
        service("echo-server", {"app": "echo-server"}),
        service("echo-server-2", {"app": "echo-server-2"}),
        service("echo-server-prod", {"app": "echo-server", "version": "prod"}),
        service("echo-server-gray", {"app": "echo-server", "version": "gray"}),
    ]


def two_services() -> Documents:
    """The rule of the example without its Services, which are here with addresses."""
    return [one for one in example("corrected/echo-split") if one["kind"] == "VirtualService"]


def findings(ground: Ground, code: str) -> float:
    return sample(ground.waypoint, "ztun_routing_findings", engine="ambient", code=code)


async def answers(ground: Ground, count: int = CONNECTIONS) -> Counter[str | None]:
    """What so many connections to echo-server are answered with."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> str | None:
        async with gate:
            return await ask(ground.entries["telnet-client", "echo-server"])

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one()) for _ in range(count)]
    return Counter(task.result() for task in tasks)


def is_share(seen: int, share: float, count: int = CONNECTIONS) -> bool:
    """Whether so many of the connections may have come from independent draws: four standard deviations."""
    return abs(seen / count - share) <= 4 * math.sqrt(share * (1 - share) / count)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("destinationSubnets", "AMB-MATCH-SUBNETS"),
        ("port", "AMB-MATCH-PORT"),
        ("sourceLabels", "AMB-MATCH-LABELS"),
        ("source-namespace", "AMB-MATCH-NAMESPACE"),
    ],
)
async def test_a_match_that_ambient_does_not_evaluate_never_applies(
    ground: Ground, name: str, code: str
) -> None:
    ground.services = plain_services(ground)
    for variant in ("as-printed", "corrected"):
        await ground.apply(example(f"{variant}/{name}"))
        for client in CLIENTS:
            assert await ask(ground.entries[client, "echo-server"]) == "hello test"
            assert await ask(ground.entries[client, "echo-server-2"]) == "hello-2 test"
        assert findings(ground, code) == 1
    # other findings of other attributes are gone with their rules
    assert sum(findings(ground, other) for other in OTHERS - {code}) == 0


@pytest.mark.asyncio
async def test_what_is_not_honoured_is_logged_once_per_object(ground: Ground) -> None:
    def ours(record: dict[str, object]) -> bool:
        return record.get("code") == "AMB-MATCH-PORT" and "VirtualService default/once" in str(record)

    rule = deepcopy(example("as-printed/port")[0])
    rule["metadata"]["name"] = "once"
    await ground.apply([rule])
    await ground.apply([rule, *example("corrected/echoserver-dr")])
    for _ in range(3):
        await ask(ground.entries["telnet-client", "echo-server"])
    await ground.apply([])
    await ground.apply(example("as-printed/sourceLabels"))
    await logged(ground.waypoint, lambda one: one.get("code") == "AMB-MATCH-LABELS")
    assert len(list(filter(ours, records(ground.waypoint)))) == 1


@pytest.mark.asyncio
async def test_rules_of_gateways_only_leave_the_mesh_alone(ground: Ground) -> None:
    ground.services = plain_services(ground)
    await ground.apply(
        example("corrected/ingressgateway-1", "corrected/ingressgateway-2", "corrected/ingressgateway-vs")
    )
    assert await ask(ground.entries["telnet-client", "echo-server"]) == "hello test"


@pytest.mark.asyncio
async def test_weights_as_printed_are_of_http_and_so_ignored(ground: Ground) -> None:
    ground.services = split_services()
    await ground.apply(example("as-printed/echoserver-vs", "as-printed/echoserver-dr"))
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.5)


@pytest.mark.asyncio
async def test_weights_over_subsets_that_do_not_exist_close_the_connection(ground: Ground) -> None:
    ground.services = split_services()
    await ground.apply(example("corrected/echoserver-vs", "as-printed/echoserver-dr"))
    assert await answers(ground, 20) == {None: 20}
    refusal = await logged(ground.waypoint, lambda one: one.get("error.code") == "route_no_subset")
    assert "DST-NOSUBSET" in refusal["error.hint"]


@pytest.mark.asyncio
async def test_corrected_weights_are_shares_of_the_connections(ground: Ground) -> None:
    ground.services = split_services()
    await ground.apply(example("corrected/echoserver-vs", "corrected/echoserver-dr"))
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.8)


@pytest.mark.asyncio
async def test_weights_over_two_services_are_shares_of_the_connections(ground: Ground) -> None:
    ground.services = split_services()
    await ground.apply(two_services())
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.8)


@pytest.mark.asyncio
async def test_a_route_of_the_gateway_api_is_the_same_split(ground: Ground) -> None:
    ground.services = split_services()
    await ground.apply(example("corrected/tcproute"))
    seen = await answers(ground)
    assert set(seen) == {"hello test", "hello-gray test"}
    assert is_share(seen["hello test"], 0.8)


@pytest.mark.asyncio
async def test_the_waypoint_reports_the_connection_with_both_ends(ground: Ground) -> None:
    ground.services = plain_services(ground)
    await ground.apply([])
    assert await ask(ground.entries["telnet-client-foo", "echo-server-2"], "reported") == "hello-2 reported"

    record = await logged(
        ground.waypoint,
        lambda one: one.get("src.workload") == "telnet-client-foo" and one.get("dst.workload") == "second",
    )
    assert record["direction"] == "inbound"
    assert record["dst.hbone_addr"] == "192.168.77.20:19000"
    assert record["src.identity"] == "spiffe://cluster.local/ns/foo/sa/telnet-client-foo"
    assert record["dst.identity"] == "spiffe://cluster.local/ns/default/sa/second"
    assert record["dst.service"] == "echo-server-2.default.svc.cluster.local"
    assert (
        sample(
            ground.waypoint,
            "istio_tcp_connections_opened_total",
            reporter="waypoint",
            source_workload="telnet-client-foo",
            destination_workload="second",
        )
        >= 1
    )
