"""What is set on real sockets, and what making one can end in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.backlog import FullBacklog
from tests.ztun.proxy.mesh import APP_PORT, LoopbackAddresses, Pair, only, until
from ztun.errors import ConfigError, ConnectError, NetworkPolicySuspected
from ztun.mesh.model import HBONE_PORT
from ztun.net.app_socket import AppSocket
from ztun.net.dial import TCP_USER_TIMEOUT, SocketOptions, connect
from ztun.net.listeners import listen
from ztun.net.original_destination import original_destination
from ztun.net.poller import Poller

pytestmark = pytest.mark.net

NEVER_SECONDS = 60.0


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


@pytest.fixture
def ip() -> str:
    return LoopbackAddresses().take()


def keepalive(sock: socket.socket) -> tuple[int, int, int, int, int]:
    """(TCP_NODELAY, SO_KEEPALIVE, idle, interval, probes)."""
    tcp = socket.IPPROTO_TCP
    return (
        sock.getsockopt(tcp, socket.TCP_NODELAY),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        sock.getsockopt(tcp, socket.TCP_KEEPIDLE),
        sock.getsockopt(tcp, socket.TCP_KEEPINTVL),
        sock.getsockopt(tcp, socket.TCP_KEEPCNT),
    )


@pytest.mark.asyncio
async def test_all_four_sockets_of_a_connection_are_kept_alive(wires: Wires) -> None:
    """A peer that vanished without a word must not hold a descriptor for ever, on any leg."""
    async with Pair() as pair:
        application = await wires.application(pair.server_ip, APP_PORT)
        await pair.start()
        await wires.dial(await pair.enter_server())
        await application.accept()
        near, far = (only(node.plane.connections) for node in (pair.near, pair.far))
        await until(lambda: near.relay is not None and far.relay is not None)
        assert near.relay is not None
        assert far.relay is not None
        assert isinstance(near.relay.client, AppSocket)
        assert isinstance(far.relay.server, AppSocket)
        _, tunnel = only(pair.near.plane.home.pool.tunnels())
        accepted = only(only(pair.far.inbound._listeners.values()).tunnels)
        for end in (near.relay.client, far.relay.server, tunnel.tls, accepted.tls):
            assert keepalive(end.sock) == (1, 1, 45, 15, 9)


def test_probes_begin_before_the_kernel_forgets_the_redirect() -> None:
    """conntrack drops a half-closed connection after 60 s; a FIN after that finds no way back."""
    assert SocketOptions().keepalive_time < 60


@pytest.mark.parametrize("user_timeout", [False, True])
def test_options_are_what_was_asked_for(user_timeout: bool) -> None:
    options = SocketOptions(
        keepalive_time=7, keepalive_interval=3, keepalive_probes=2, user_timeout=user_timeout
    )
    with socket.socket() as sock:
        options.apply(sock)
        assert keepalive(sock) == (1, 1, 7, 3, 2)
        expected = (7 + 3 * 2) * 1000 if user_timeout else 0
        assert sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == expected
    with socket.socket() as sock:
        SocketOptions(keepalive=False).apply(sock)
        assert keepalive(sock)[:2] == (1, 0)


@pytest.mark.asyncio
async def test_dial_from_an_address(ip: str, wires: Wires) -> None:
    application = await wires.application(ip, APP_PORT)
    source = LoopbackAddresses().take()
    dialled = await connect((ip, APP_PORT), options=SocketOptions(), timeout=NEVER_SECONDS, source_ip=source)
    with contextlib.closing(dialled.sock):
        assert dialled.source_kept
        assert (await application.accept()).peer[0] == source


@pytest.mark.asyncio
async def test_address_of_the_other_family_is_not_kept(ip: str, wires: Wires) -> None:
    await wires.application(ip, APP_PORT)
    dialled = await connect(
        (ip, APP_PORT), options=SocketOptions(), timeout=NEVER_SECONDS, source_ip="fd00::1"
    )
    with contextlib.closing(dialled.sock):
        assert not dialled.source_kept


@pytest.mark.asyncio
async def test_refused(ip: str) -> None:
    with pytest.raises(ConnectError) as raised:
        await connect((ip, APP_PORT), options=SocketOptions(), timeout=NEVER_SECONDS)
    assert (raised.value.code, raised.value.peer) == ("connect_refused", f"{ip}:{APP_PORT}")
    assert raised.value.hint


@pytest.mark.asyncio
async def test_no_route() -> None:
    """Linux has no TCP route to the broadcast address, whatever else it has."""
    with pytest.raises(ConnectError) as raised:
        await connect(("255.255.255.255", APP_PORT), options=SocketOptions(), timeout=NEVER_SECONDS)
    assert raised.value.code == "connect_unreachable"
    assert raised.value.hint


@pytest.mark.asyncio
async def test_no_descriptor_left(ip: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(ConnectError) as raised:
            await connect((ip, APP_PORT), options=SocketOptions(), timeout=NEVER_SECONDS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert raised.value.code == "no_descriptors"
    assert "limit of open files" in raised.value.hint


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [APP_PORT, HBONE_PORT])
async def test_no_answer(ip: str, port: int) -> None:
    async with FullBacklog(ip, port):
        with pytest.raises(ConnectError) as raised:
            await connect((ip, port), options=SocketOptions(), timeout=0.05)
    assert raised.value.code == "connect_timeout"
    assert isinstance(raised.value, NetworkPolicySuspected) == (port == HBONE_PORT)


@pytest.mark.asyncio
async def test_cancelled_dial_leaves_no_socket(ip: str) -> None:
    """A socket that is not closed is a ResourceWarning, which fails a test."""
    async with FullBacklog(ip, APP_PORT):
        dial = asyncio.create_task(connect((ip, APP_PORT), options=SocketOptions(), timeout=NEVER_SECONDS))
        await asyncio.sleep(0)
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial


@pytest.mark.asyncio
async def test_mark_that_the_kernel_refuses_is_an_error(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its mark a proxy's own traffic would be captured again."""

    def refuse(options: SocketOptions, sock: socket.socket) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(SocketOptions, "apply", refuse)
    with pytest.raises(ConnectError) as raised:
        await connect((ip, APP_PORT), options=SocketOptions(mark=1337), timeout=NEVER_SECONDS)
    assert raised.value.code == "connect_failed"
    assert "Operation not permitted" in str(raised.value)


@pytest_asyncio.fixture
async def poller() -> AsyncIterator[Poller]:
    made = Poller(asyncio.get_running_loop())
    yield made
    made.close()


def refuse(sock: socket.SocketType, *_: object) -> None:
    sock.close()


@pytest.mark.asyncio
async def test_port_that_is_taken(poller: Poller, ip: str, wires: Wires) -> None:
    await wires.application(ip, APP_PORT)
    with pytest.raises(ConfigError) as raised:
        listen(poller, ip, APP_PORT, refuse, SocketOptions(), purpose="a test")
    assert raised.value.code == "listen_failed"
    assert "for a test" in str(raised.value)
    assert raised.value.hint == "another process has the port"


@pytest.mark.asyncio
async def test_address_that_is_not_here(poller: Poller) -> None:
    with pytest.raises(ConfigError) as raised:
        listen(poller, "192.0.2.1", 0, refuse, SocketOptions(), purpose="a test")
    assert raised.value.hint == "the address is not on this machine"


@pytest.mark.asyncio
async def test_old_and_new_proxy_may_listen_side_by_side(poller: Poller, ip: str) -> None:
    servers = [listen(poller, ip, APP_PORT, refuse, SocketOptions(), purpose="a test") for _ in range(2)]
    for server in servers:
        server.close()


def test_connection_that_nothing_redirected_goes_where_it_came_to(ip: str) -> None:
    with socket.create_server((ip, 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert original_destination(accepted) == server.getsockname()


def test_mapped_address_is_given_as_what_it_is(ip: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection((ip, port)):
            accepted, _ = server.accept()
            with accepted:
                assert original_destination(accepted) == (ip, port)


@pytest.mark.asyncio
@pytest.mark.parametrize("ending", ["finish", "close"])
async def test_who_waits_in_the_queue_when_a_listener_finishes_is_still_taken(
    poller: Poller, ending: str
) -> None:
    """An old proxy finishes; one whose pod is gone closes."""
    arrived: list[tuple[str, int]] = []

    def greet(sock: socket.SocketType, _local: tuple[str, int], peer: tuple[str, int]) -> None:
        arrived.append(peer)
        with contextlib.closing(sock):
            sock.send(b"hello")

    ip = LoopbackAddresses().take()
    listener = listen(poller, ip, 0, greet, SocketOptions(), purpose="a test")
    # connected by the kernel, while the loop has had no turn to accept
    with socket.create_connection(listener.address) as client:
        if ending == "finish":
            listener.finish()
        else:
            listener.close()
        client.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=client)
        if ending == "finish":
            assert await reader.read() == b"hello"
        else:
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert len(arrived) == (ending == "finish")
        writer.close()
