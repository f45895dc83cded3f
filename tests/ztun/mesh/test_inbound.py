"""What a CONNECT request may ask for: the table of addresses, names, waypoints and their errors."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh.inbound import InboundRefused, InboundTarget, decide_inbound
from ztun.mesh.model import (
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    NetworkAddress,
    Service,
    ServicePort,
    Vip,
    Workload,
)
from ztun.mesh.snapshot import build_snapshot

pytestmark = pytest.mark.unit

HOST = "server.default.svc.cluster.local"
CLIENT = Workload("client", "client", "default", ("10.0.0.1",))
SERVICE = Service("server", "default", HOST, (Vip("", "10.10.0.1"),), {80: ServicePort(80, 8080)})
SERVER = Workload("server", "server", "default", ("10.0.0.2",), services={SERVICE.key: {80: 8080}})
WAYPOINT_SERVICE = Service(
    "waypoint", "default", "waypoint", (Vip("", "10.10.0.2"),), {15008: ServicePort(15008, 15008)}
)
WAYPOINT = Workload(
    "waypoint", "waypoint", "default", ("10.0.0.3",), services={WAYPOINT_SERVICE.key: {15008: 15008}}
)
BY_POD = GatewayAddress(NetworkAddress("", "10.0.0.3"))
BY_VIP = GatewayAddress(NetworkAddress("", "10.10.0.2"))
PROXY = ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)


def ask(
    authority: str,
    *,
    local: Workload = SERVER,
    server: Workload = SERVER,
    service: Service = SERVICE,
    forwarded_host: str | None = None,
) -> InboundTarget:
    state = build_snapshot(
        workloads=[CLIENT, server, local], services=[service, WAYPOINT_SERVICE], policies=[]
    )
    return decide_inbound(state, local, local.addresses[0], authority, forwarded_host=forwarded_host)


def refusal(authority: str, **options: object) -> tuple[int, str]:
    with pytest.raises(InboundRefused) as caught:
        ask(authority, **options)  # type: ignore[arg-type]
    return caught.value.status, caught.value.code


def test_a_pod_by_its_address() -> None:
    assert ask("10.0.0.2:8080") == InboundTarget("10.0.0.2", 8080, SERVICE)


def test_a_pod_by_its_mapped_address() -> None:
    assert ask("[::ffff:10.0.0.2]:8080").ip == "10.0.0.2"


def test_a_pod_by_the_name_of_its_service() -> None:
    assert ask(f"{HOST}:80") == InboundTarget("10.0.0.2", 8080, SERVICE)


def test_a_named_port_comes_from_the_pod() -> None:
    named = dataclasses.replace(SERVICE, ports={80: ServicePort(80)})
    server = dataclasses.replace(SERVER, services={SERVICE.key: {80: 9999}})
    assert ask(f"{HOST}:80", service=named, local=server, server=server).port == 9999


def test_a_named_port_that_the_pod_has_not() -> None:
    named = dataclasses.replace(SERVICE, ports={80: ServicePort(80)})
    server = dataclasses.replace(SERVER, services={SERVICE.key: {}})
    assert refusal(f"{HOST}:80", service=named, local=server, server=server) == (503, "no_port_for_services")
    assert refusal(f"{HOST}:81") == (503, "no_port_for_services")


def test_an_unknown_name() -> None:
    assert refusal("nobody.example:80") == (503, "no_hostname")


@pytest.mark.parametrize("authority", ["", "10.0.0.2", "10.0.0.2:0", "a b:80", "::1:80", "[::1%lo]:80"])
def test_an_authority_that_cannot_be_read(authority: str) -> None:
    assert refusal(authority) == (400, "bad_authority")


@pytest.mark.parametrize("authority", ["10.0.0.1:8080", "10.10.0.1:80", "8.8.8.8:80", "[::1]:80"])
def test_a_pod_never_stands_for_another_address(authority: str) -> None:
    assert refusal(authority) == (400, "ip_mismatch")


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
def test_the_ports_of_the_proxy_are_refused(port: int) -> None:
    assert refusal(f"10.0.0.2:{port}") == (503, "self_call")


@pytest.mark.parametrize("attachment", [BY_POD, BY_VIP, GatewayAddress(WAYPOINT_SERVICE.key)])
def test_a_waypoint_of_a_workload_may_be_asked_for_it(attachment: GatewayAddress) -> None:
    server = dataclasses.replace(SERVER, waypoint=attachment)
    found = ask("10.0.0.2:8080", local=WAYPOINT, server=server)
    assert (found.ip, found.port, found.proxy_destination) == ("10.0.0.3", 8080, None)


@pytest.mark.parametrize("attachment", [BY_POD, BY_VIP, GatewayAddress(WAYPOINT_SERVICE.key)])
def test_a_waypoint_of_a_service_may_be_asked_for_it(attachment: GatewayAddress) -> None:
    service = dataclasses.replace(SERVICE, waypoint=attachment)
    found = ask("10.10.0.1:80", local=WAYPOINT, service=service)
    assert (found.ip, found.port) == ("10.0.0.3", 80)


def test_a_waypoint_is_refused_what_it_does_not_stand_for() -> None:
    assert refusal("10.0.0.2:8080", local=WAYPOINT) == (400, "ip_mismatch")
    of_service = dataclasses.replace(SERVICE, waypoint=BY_VIP)
    assert refusal("10.0.0.2:8080", local=WAYPOINT, service=of_service) == (400, "ip_mismatch")
    of_workload = dataclasses.replace(SERVER, waypoint=BY_VIP)
    assert refusal("10.10.0.1:80", local=WAYPOINT, server=of_workload) == (400, "ip_mismatch")


def test_a_proxy_behind_the_proxy_is_told_the_target() -> None:
    sandwich = dataclasses.replace(WAYPOINT, application_tunnel=PROXY)
    found = ask("10.0.0.2:8080", local=sandwich)
    assert (found.ip, found.port, found.proxy_destination) == ("10.0.0.3", 15088, ("10.0.0.2", 8080))
    by_name = ask(f"{HOST}:80", local=sandwich)
    assert (by_name.port, by_name.proxy_destination) == (15088, ("10.10.0.1", 80))


def test_a_proxy_header_needs_an_address() -> None:
    sandwich = dataclasses.replace(WAYPOINT, application_tunnel=PROXY)
    service = dataclasses.replace(SERVICE, vips=())
    assert refusal(f"{HOST}:80", local=sandwich, service=service) == (503, "no_ip_for_service")


def test_a_tunnel_without_port_keeps_the_target_port() -> None:
    plain = dataclasses.replace(WAYPOINT, application_tunnel=ApplicationTunnel(AppTunnelProtocol.NONE))
    found = ask("10.0.0.2:8080", local=plain)
    assert (found.ip, found.port, found.proxy_destination) == ("10.0.0.3", 8080, None)


def test_the_forwarded_host_counts_only_among_the_pods_own_services() -> None:
    second = Service("second", "default", "second.example", ports={80: ServicePort(80, 8080)})
    server = dataclasses.replace(SERVER, services={SERVICE.key: {80: 8080}, second.key: {80: 8080}})
    state = build_snapshot(workloads=[server], services=[SERVICE, second], policies=[])

    def counted(forwarded_host: str | None, port: int = 8080) -> Service | None:
        authority = f"10.0.0.2:{port}"
        return decide_inbound(state, server, "10.0.0.2", authority, forwarded_host=forwarded_host).service

    assert counted("second.example") == second
    assert counted("bogus.example") == SERVICE
    assert counted(None) == SERVICE
    assert counted(None, port=1) is None


@given(st.text(max_size=60))
def test_the_dialled_address_is_always_the_accepted_one(authority: str) -> None:
    try:
        found = ask(authority)
    except InboundRefused as error:
        assert error.status in (400, 503)
        return
    assert found.ip == "10.0.0.2"
