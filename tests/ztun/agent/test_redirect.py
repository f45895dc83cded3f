"""What the kernel does with a captured pod's traffic: plain listeners stand where the proxy would listen."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from tests.ztun.agent.pods import PATIENCE_SECONDS, Pod, PodNetwork, dial, listener
from tests.ztun.netns.namespaces import Namespace, missing, run
from ztun.agent.capture import apply_capture, plan_capture, undo_capture
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.rules import (
    DNS_PORT,
    HBONE_PORT,
    INBOUND_PORT,
    OUTBOUND_PORT,
    PACKET_MARK,
    PROBE_ADDRESS_V4,
    PROBE_ADDRESS_V6,
    CaptureOptions,
)
from ztun.net.dial import IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT, SO_MARK
from ztun.net.original_destination import original_destination

pytestmark = pytest.mark.netns

APP_PORT = 9000
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
PROBES = {4: PROBE_ADDRESS_V4, 6: PROBE_ADDRESS_V6}
PREFIX = {4: 32, 6: 128}
REASON = missing()


@dataclass
class Arrival:
    """A connection or datagram, and where it came in."""

    place: str
    peer: tuple[str, int]
    original: tuple[str, int]
    data: bytes = b""


@dataclass
class World:
    """A pod that is captured for the length of a test, somebody outside, and a listener in every place."""

    pod: Pod
    outside: Pod
    places: dict[socket.socket, str] = field(default_factory=dict)

    def listen(self, place: str, pod: Pod, ip: str, port: int, kind: int = socket.SOCK_STREAM) -> None:
        self.places[listener(pod, ip, port, kind)] = place

    def arrival(self) -> Arrival:
        """The next thing that arrives anywhere; it is answered with the name of the place."""
        ready, _, _ = select.select(list(self.places), [], [], PATIENCE_SECONDS)
        assert ready, "nothing arrived anywhere"
        sock = ready[0]
        place = self.places[sock]
        if sock.type == socket.SOCK_DGRAM:
            data, peer = sock.recvfrom(100)
            sock.sendto(place.encode(), peer)
            return Arrival(place, plain(peer), plain(sock.getsockname()), data)
        accepted, peer = sock.accept()
        with accepted:
            accepted.sendall(place.encode())
            return Arrival(place, plain(peer), original_destination(accepted))

    def nothing_else(self) -> bool:
        return select.select(list(self.places), [], [], 0)[0] == []


def plain(address: tuple[str, int]) -> tuple[str, int]:
    return address[0].removeprefix("::ffff:"), address[1]


@pytest.fixture(scope="module")
def ground() -> Iterator[World]:
    if REASON:
        pytest.skip(REASON)
    with PodNetwork() as network:
        yield World(network.two_family_pod("pod"), network.two_family_pod("outside"))


@pytest.fixture
def world(ground: World) -> Iterator[World]:
    with ExitStack() as stack:
        world = World(ground.pod, ground.outside)
        stack.callback(lambda: [sock.close() for sock in world.places])
        for name, port in (
            ("outbound", OUTBOUND_PORT),
            ("inbound", INBOUND_PORT),
            ("hbone", HBONE_PORT),
            ("application", APP_PORT),
        ):
            world.listen(name, world.pod, "::", port)
        for family in (4, 6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                world.listen("dns", world.pod, LOOPBACK[family], DNS_PORT, kind)
        for port in (APP_PORT, 53, HBONE_PORT):
            world.listen("outside", world.outside, "::", port)
        for family in (4, 6):  # one each, for the answer of a wildcard may have another source
            for port in (53, 5353):
                world.listen("outside", world.outside, world.outside.address(family), port, socket.SOCK_DGRAM)
        yield world


@contextmanager
def captured(pod: Pod, options: CaptureOptions = CaptureOptions()) -> Iterator[None]:  # noqa: B008
    """Capture a pod for a while; not one rule is left."""
    before = pod.contents()
    namespace = PodNamespace.open(pod.path)

    async def load() -> None:
        plan = await plan_capture(namespace)
        records.append(plan.record)
        await apply_capture(namespace, plan, options)

    records = []
    try:
        asyncio.run(load())
        yield
    finally:
        try:
            asyncio.run(undo_capture(namespace, records[0]))
        finally:
            namespace.close()
    assert pod.contents() == before


def heard(sock: socket.socket) -> str:
    """What the other end said; the connection is over."""
    with sock:
        return sock.recv(100).decode()


def tcp(world: World, pod: Pod, ip: str, port: int, *, marked: bool = False) -> Arrival:
    """Connect and see where it arrives, and that the answer comes back."""
    sock = dial(pod, ip, port, marked=marked)
    arrival = world.arrival()
    assert heard(sock) == arrival.place
    assert world.nothing_else()
    return arrival


def udp(world: World, pod: Pod, ip: str, port: int, *, marked: bool = False, from_port: int = 0) -> Arrival:
    """Send a datagram and see where it arrives, and that the answer comes from whom it was sent to."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with pod.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(PATIENCE_SECONDS)
        if marked:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, PACKET_MARK)
        sock.bind((pod.address(4 if family == socket.AF_INET else 6) if from_port else "", from_port))
        sock.connect((ip, port))
        sock.send(b"ask")
        arrival = world.arrival()
        assert arrival.data == b"ask"
        assert sock.recv(100).decode() == arrival.place
    assert world.nothing_else()
    return arrival


families = pytest.mark.parametrize("family", [4, 6])


@families
def test_what_a_pod_sends_goes_to_the_proxy(world: World, family: int) -> None:
    target = (world.outside.address(family), APP_PORT)
    assert tcp(world, world.pod, *target).place == "outside"
    with captured(world.pod):
        arrival = tcp(world, world.pod, *target)
        assert (arrival.place, arrival.original) == ("outbound", target)
    assert tcp(world, world.pod, *target).place == "outside"


@families
@pytest.mark.parametrize("port", [APP_PORT, 53])
def test_what_the_proxy_sends_goes_where_it_should(world: World, family: int, port: int) -> None:
    with captured(world.pod):
        arrival = tcp(world, world.pod, world.outside.address(family), port, marked=True)
        assert (arrival.place, arrival.peer[0]) == ("outside", world.pod.address(family))


@families
def test_a_tunnel_to_another_node_may_be_dialled_by_the_proxy_only(world: World, family: int) -> None:
    target = (world.outside.address(family), HBONE_PORT)
    with captured(world.pod):
        assert tcp(world, world.pod, *target).place == "outbound"
        assert tcp(world, world.pod, *target, marked=True).place == "outside"


@families
def test_a_pod_that_talks_to_itself_is_left_alone(world: World, family: int) -> None:
    with captured(world.pod):
        for ip in (LOOPBACK[family], world.pod.address(family)):
            arrival = tcp(world, world.pod, ip, APP_PORT)
            assert (arrival.place, arrival.original) == ("application", (ip, APP_PORT))


@families
def test_plaintext_that_arrives_goes_to_the_proxy(world: World, family: int) -> None:
    target = (world.pod.address(family), APP_PORT)
    with captured(world.pod):
        arrival = tcp(world, world.outside, *target)
        assert (arrival.place, arrival.original) == ("inbound", target)
        assert arrival.peer[0] == world.outside.address(family)


@families
def test_tunnels_that_arrive_are_not_redirected(world: World, family: int) -> None:
    with captured(world.pod):
        arrival = tcp(world, world.outside, world.pod.address(family), HBONE_PORT)
        assert (arrival.place, arrival.original[1]) == ("hbone", HBONE_PORT)


@families
def test_probes_pass_both_ways(world: World, family: int) -> None:
    probe = PROBES[family]
    world.outside.run("ip", "address", "add", f"{probe}/{PREFIX[family]}", "dev", "eth0", "nodad")
    try:
        world.listen("prober", world.outside, probe, APP_PORT + 1)
        with captured(world.pod):
            sock = dial(world.outside, world.pod.address(family), APP_PORT, source=(probe, 0))
            arrival = world.arrival()
            assert heard(sock) == arrival.place == "application"
            assert arrival.peer[0] == probe
            assert tcp(world, world.pod, probe, APP_PORT + 1).place == "prober"
    finally:
        world.outside.run("ip", "address", "del", f"{probe}/{PREFIX[family]}", "dev", "eth0")


@families
def test_only_dns_is_captured_of_udp(world: World, family: int) -> None:
    outside = world.outside.address(family)
    with captured(world.pod):
        assert udp(world, world.pod, outside, 5353).place == "outside"
        assert udp(world, world.pod, outside, 53).place == "dns"
        assert udp(world, world.pod, outside, 53, marked=True).place == "outside"


@families
def test_dns_by_tcp_is_captured_too(world: World, family: int) -> None:
    target = (world.outside.address(family), 53)
    with captured(world.pod):
        arrival = tcp(world, world.pod, *target)
        assert (arrival.place, arrival.original) == ("dns", target)


@families
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_name_server_inside_the_pod_is_left_alone(world: World, family: int, kind: int) -> None:
    world.listen("resolver", world.pod, LOOPBACK[family], 53, kind)
    with captured(world.pod):
        ask = tcp if kind == socket.SOCK_STREAM else udp
        assert ask(world, world.pod, LOOPBACK[family], 53).place == "resolver"


@families
def test_the_proxys_own_query_may_have_the_pods_port(world: World, family: int) -> None:
    """Without a conntrack zone of its own it would be taken for the pod's, and sent back to the proxy."""
    target, port = (world.outside.address(family), 53), 40053
    with captured(world.pod):
        assert udp(world, world.pod, *target, from_port=port).place == "dns"
        assert udp(world, world.pod, *target, from_port=port, marked=True).place == "outside"
        assert udp(world, world.pod, *target, from_port=port).place == "dns"


@families
def test_without_dns_capture_queries_are_as_all_traffic(world: World, family: int) -> None:
    outside = world.outside.address(family)
    with captured(world.pod, CaptureOptions(dns=False)):
        assert udp(world, world.pod, outside, 53).place == "outside"
        arrival = tcp(world, world.pod, outside, 53)
        assert (arrival.place, arrival.original) == ("outbound", (outside, 53))


@families
def test_without_inbound_capture_what_arrives_passes(world: World, family: int) -> None:
    with captured(world.pod, CaptureOptions(inbound=False)):
        assert tcp(world, world.outside, world.pod.address(family), APP_PORT).place == "application"
        assert tcp(world, world.pod, world.outside.address(family), APP_PORT).place == "outbound"


@families
def test_what_arrives_from_behind_a_virtual_interface_is_outbound(world: World, family: int) -> None:
    """A VM inside the pod: its traffic leaves the pod, whoever it is for."""
    guest_ip, gateway = {4: ("10.78.0.2", "10.78.0.1"), 6: ("fd78::2", "fd78::1")}[family]
    length = {4: 24, 6: 64}[family]
    guest = Pod(Namespace(f"{world.pod.name}-guest", guest_ip), 0)
    with ExitStack() as undo:
        run("ip", "netns", "add", guest.name)
        undo.callback(run, "ip", "netns", "del", guest.name)
        world.pod.run(
            "ip", "link", "add", "tap0", "type", "veth", "peer", "name", "eth0", "netns", guest.name
        )
        # with its namespace alone the kernel would remove it some time later
        undo.callback(world.pod.run, "ip", "link", "del", "tap0")
        for one, device, ip in ((world.pod, "tap0", gateway), (guest, "eth0", guest_ip)):
            one.run("ip", "address", "add", f"{ip}/{length}", "dev", device, "nodad")
            one.run("ip", "link", "set", device, "up")
        guest.run("ip", f"-{family}", "route", "add", "default", "via", gateway)
        with captured(world.pod, CaptureOptions(virtual_interfaces=("tap0",))):
            target = (world.outside.address(family), APP_PORT)
            arrival = tcp(world, guest, *target)
            assert (arrival.place, arrival.original, arrival.peer[0]) == ("outbound", target, guest_ip)
            inbound = tcp(world, world.outside, world.pod.address(family), APP_PORT)
            assert inbound.place == "inbound"


@families
def test_the_proxy_may_speak_to_the_application_as_the_client(world: World, family: int) -> None:
    """The answers of the application go back to the proxy, not to the client whose address it saw."""
    client, server = world.outside.address(family), world.pod.address(family)

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
        options = (
            (socket.IPPROTO_IPV6, (IPV6_TRANSPARENT, IPV6_FREEBIND))
            if family == 6
            else (socket.SOL_IP, (IP_TRANSPARENT, IP_FREEBIND))
        )
        for option in options[1]:
            sock.setsockopt(options[0], option, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, PACKET_MARK)
        sock.settimeout(PATIENCE_SECONDS)
        sock.bind((client, 0))
        return sock

    with captured(world.pod):
        sock = world.pod.inside(make)
        port = sock.getsockname()[1]
        sock.connect((server, APP_PORT))
        arrival = world.arrival()
        assert heard(sock) == arrival.place == "application"
        assert arrival.peer == (client, port)


@families
def test_nothing_leaves_while_no_proxy_listens(world: World, family: int) -> None:
    for sock, place in list(world.places.items()):
        if place in ("outbound", "dns"):
            sock.close()
            del world.places[sock]
    outside = world.outside.address(family)
    with captured(world.pod):
        for port in (APP_PORT, 53):
            with pytest.raises(ConnectionRefusedError):
                dial(world.pod, outside, port)
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        with world.pod.inside(lambda: socket.socket(kind, socket.SOCK_DGRAM)) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect((outside, 53))
            sock.send(b"ask")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)
        assert world.nothing_else()


def test_rules_are_exchanged_under_a_connection(world: World) -> None:
    """Another set of options, or the same again: what is established goes on."""
    target = (world.outside.ip, APP_PORT)
    with captured(world.pod):
        namespace = PodNamespace.open(world.pod.path)
        try:
            with dial(world.pod, *target) as client:
                server, _ = next(sock for sock, place in world.places.items() if place == "outbound").accept()
                with server:
                    server.settimeout(PATIENCE_SECONDS)
                    for options in (CaptureOptions(dns=False, inbound=False), CaptureOptions()):
                        plan = asyncio.run(plan_capture(namespace))
                        asyncio.run(apply_capture(namespace, plan, options))
                        client.sendall(b"ping")
                        assert server.recv(100) == b"ping"
                        server.sendall(b"pong")
                        assert client.recv(100) == b"pong"
        finally:
            namespace.close()
