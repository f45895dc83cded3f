"""What a destination's traffic policy says about the sockets that lead to it."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.mesh import Pair
from ztun.hbone.wire import ErrorCode
from ztun.mesh.lookup import OutboundRoute, RouteKind
from ztun.mesh.model import Workload
from ztun.net.app_socket import AppSocket
from ztun.proxy.connector import MAX_KEEPALIVE_PROBES, MAX_KEEPALIVE_SECONDS, Connector
from ztun.traffic.policy import Keepalive, PoolLimits

pytestmark = pytest.mark.net


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (Keepalive(probes=3, time=7.0, interval=2.0), (7, 2, 3)),
        (
            Keepalive(probes=10**6, time=10.0**6, interval=0.001),
            (MAX_KEEPALIVE_SECONDS, 1, MAX_KEEPALIVE_PROBES),
        ),
        (Keepalive(time=5.0), (5, None, None)),
    ],
)
async def test_keepalive_of_a_plain_connection_is_the_destinations(
    wanted: Keepalive, seen: tuple[int, int | None, int | None]
) -> None:
    async with Pair() as mesh, Wires() as wires:
        await mesh.start()
        application = await wires.application(mesh.addresses.take(), 0)
        options = mesh.near.plane.settings.sockets
        route = OutboundRoute(RouteKind.PASSTHROUGH, application.address)
        source = (mesh.client.addresses[0], 1234)
        reached, _ = await Connector(mesh.near.plane).connect(
            mesh.client, source, route, PoolLimits(keepalive=wanted)
        )
        assert isinstance(reached, AppSocket)
        sock = reached.sock
        usual = (options.keepalive_time, options.keepalive_interval, options.keepalive_probes)
        kinds = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        for kind, value, default in zip(kinds, seen, usual, strict=True):
            assert sock.getsockopt(socket.IPPROTO_TCP, kind) == (default if value is None else value)
        reached.abort(ErrorCode.CANCEL)


@pytest.mark.asyncio
async def test_each_use_of_a_workload_known_by_name_only_is_counted() -> None:
    """Like ztunnel's test_on_demand_dns_request: uses, whether or not a resolver remembers."""
    async with Pair() as mesh, Wires() as wires:
        await mesh.start()
        application = await wires.application("127.0.0.1", 0)
        with contextlib.suppress(OSError):  # the name may have an address of either family
            await wires.application("::1", application.address[1])
        outside = Workload("outside", "outside", "default", hostname="localhost")
        route = OutboundRoute(RouteKind.TCP, ("localhost", application.address[1]), destination=outside)
        for number in (1, 2):
            reached, _ = await Connector(mesh.near.plane).connect(mesh.client, ("127.0.0.1", 1), route)
            assert isinstance(reached, AppSocket)
            labels = {
                "source_workload": "client",
                "source_workload_namespace": "default",
                "source_principal": str(mesh.client.identity),
                "hostname": "localhost",
            }
            assert mesh.near.sample("istio_on_demand_dns_total", **labels) == number
            reached.abort(ErrorCode.CANCEL)
