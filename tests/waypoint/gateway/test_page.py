"""The examples with gateways on live traffic, with either engine: the gateway decides which service answers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.waypoint.gateway.edge import SERVICE_PORT, Edge, gateway, rules, said, server, to
from tests.waypoint.server.ground import ask, example, logged, sample, service

pytestmark = pytest.mark.net

CONNECTIONS = 400
AT_ONCE = 32
PAGE = ("corrected/ingressgateway-1", "corrected/ingressgateway-2", "corrected/ingressgateway-vs")


@pytest.fixture(scope="module", params=["ambient", "sidecar"])
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(tmp_path_factory.mktemp("page"), gateways=2, engine=request.param) as edge:
        edge.documents = example(*PAGE)
        edge.start(near=True)
        yield edge


async def answers(edge: Edge, count: int = CONNECTIONS) -> Counter[str | None]:
    """What so many connections to the first gateway are answered with."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> str | None:
        async with gate:
            return await ask(edge.address(SERVICE_PORT))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one()) for _ in range(count)]
    return Counter(task.result() for task in tasks)


@pytest.mark.asyncio
async def test_each_gateway_leads_to_its_service(edge: Edge) -> None:
    await edge.apply(example(*PAGE))
    assert await ask(edge.address(SERVICE_PORT, 0)) == "hello test"
    assert await ask(edge.address(SERVICE_PORT, 1)) == "hello-2 test"


@pytest.mark.asyncio
async def test_the_address_of_the_service_inside_the_mesh_is_not_the_gateway(edge: Edge) -> None:
    await edge.apply(example(*PAGE))
    assert await ask(edge.entry) == "hello test"


@pytest.mark.asyncio
async def test_nothing_is_complained_about(edge: Edge) -> None:
    await edge.apply(example(*PAGE))
    for number in range(2):
        await edge.caught_up(number)
    assert not [one for process in edge.gateways for one in said(process, "ingressgateway-vs")]


@pytest.mark.asyncio
async def test_weights_over_two_services_are_shares(edge: Edge) -> None:
    await edge.apply(
        [
            gateway("ingressgateway-1", server(SERVICE_PORT)),
            rules(
                "split",
                ["ingressgateway-1"],
                tcp=[{"route": [to("echo-server", weight=80), to("echo-server-2", weight=20)]}],
            ),
        ]
    )
    seen = await answers(edge)
    assert set(seen) == {"hello test", "hello-2 test"}
    assert abs(seen["hello test"] / CONNECTIONS - 0.8) <= 4 * math.sqrt(0.8 * 0.2 / CONNECTIONS)


@pytest.mark.asyncio
async def test_subsets_are_found_from_a_gateway(edge: Edge) -> None:
    before = edge.services
    edge.services = [service("echo-server", {"app": "echo-server"}, labels={}), *before[1:]]
    subset = to("echo-server")
    subset["destination"]["subset"] = "gray"
    await edge.apply(
        [
            *example("corrected/echoserver-dr"),
            gateway("ingressgateway-1", server(SERVICE_PORT)),
            rules("gray", ["ingressgateway-1"], tcp=[{"route": [subset]}]),
        ]
    )
    assert await answers(edge, 20) == {"hello-gray test": 20}
    edge.services = before


@pytest.mark.asyncio
async def test_a_rule_without_usable_destination_closes_its_connections(edge: Edge) -> None:
    await edge.apply(
        [
            gateway("ingressgateway-1", server(SERVICE_PORT)),
            rules("nowhere", ["ingressgateway-1"], tcp=[{"route": [to("nobody")]}]),
        ]
    )
    assert await answers(edge, 5) == {None: 5}
    refusal = await logged(edge.gateway, lambda one: one.get("error.code") == "route_no_host")
    assert "DST-NOHOST" in refusal["error.hint"]


@pytest.mark.asyncio
async def test_a_route_of_the_gateway_api_leads_in(edge: Edge) -> None:
    """A Gateway of the Gateway API is for the gateway that has its name."""
    await edge.apply(
        [
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": "ingressgateway-1", "namespace": "istio-system"},
                "spec": {
                    "gatewayClassName": "istio",
                    "listeners": [
                        {
                            "name": "echo",
                            "port": 7000,
                            "protocol": "TCP",
                            "allowedRoutes": {"namespaces": {"from": "All"}},
                        }
                    ],
                },
            },
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "TCPRoute",
                "metadata": {"name": "echo", "namespace": "default"},
                "spec": {
                    "parentRefs": [{"name": "ingressgateway-1", "namespace": "istio-system"}],
                    "rules": [{"backendRefs": [{"name": "echo-server-2", "port": SERVICE_PORT}]}],
                },
            },
        ]
    )
    assert await ask(edge.address(7000)) == "hello-2 test"


@pytest.mark.asyncio
async def test_the_gateway_reports_both_ends_of_a_connection(edge: Edge) -> None:
    await edge.apply(example(*PAGE))
    await ask(edge.address(SERVICE_PORT, 1), "reported")
    gateway_two = edge.gateways[1]
    record = await logged(gateway_two, lambda one: one.get("dst.workload") == "second")
    assert record["src.identity"] == "spiffe://cluster.local/ns/istio-system/sa/ingressgateway-2"
    assert record["dst.identity"] == "spiffe://cluster.local/ns/default/sa/second"
    assert record["dst.service"] == "echo-server-2.default.svc.cluster.local"
    assert record["direction"] == "outbound"
    opened = sample(
        gateway_two,
        "istio_tcp_connections_opened_total",
        reporter="source",
        source_workload="ingressgateway-2",
        destination_workload="second",
    )
    assert opened >= 1
