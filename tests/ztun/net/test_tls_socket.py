"""TLS that ends here: bytes, ends and back-pressure in both directions, and what is no TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from tests.peers.tls_client import TlsClient, client_context
from tests.peers.web_certificates import WebAuthority
from tests.ztun.net.ends import Recorder
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.mesh import LoopbackAddresses, until
from ztun.errors import TunnelTlsError
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import HELD_BYTES, AppSocket
from ztun.net.dial import SocketOptions
from ztun.net.listeners import listen
from ztun.net.poller import Poller
from ztun.net.tls_socket import TlsSocket

pytestmark = pytest.mark.net

PATIENT_SECONDS = 3600.0
NAME = "db.example.com"


@dataclass
class Ends:
    """A connection whose handshake has not begun: our plain socket, and the client's session."""

    plain: AppSocket
    client: TlsClient
    wires: Wires
    context: SSL.Context
    other: Recorder
    poller: Poller

    def take_over(self) -> TlsSocket:
        session = SSL.Connection(self.context, None)
        session.set_accept_state()
        return TlsSocket.over(self.plain, self.poller, session)

    async def established(self) -> TlsSocket:
        ours = self.take_over()
        await asyncio.gather(ours.handshake(PATIENT_SECONDS), self.client.handshake())
        ours.own(self.other)
        return ours

    async def started(self) -> TlsSocket:
        ours = await self.established()
        ours.start(self.other, self.other)
        return ours


def server_context(authority: WebAuthority) -> SSL.Context:
    made = authority.issue(NAME)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(x509.load_pem_x509_certificate(made.chain.encode()))
    key = serialization.load_pem_private_key(made.key.encode(), None)
    context.use_privatekey(key)  # type: ignore[arg-type]
    return context


@pytest_asyncio.fixture(params=["1.2", "1.3"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    made: list[AppSocket] = []
    authority = WebAuthority()
    context = client_context(authority.pem)
    if request.param == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    accepted: list[socket.SocketType] = []

    def accept(sock: socket.SocketType, *_: object) -> None:
        accepted.append(sock)
        made.append(AppSocket(poller, sock))

    poller = Poller(asyncio.get_running_loop())
    server = listen(poller, LoopbackAddresses().take(), 0, accept, SocketOptions(), purpose="a test")
    async with Wires() as wires:
        wire = await wires.dial(server.address)
        await until(lambda: bool(made))
        client = TlsClient(wire, context, NAME)
        yield Ends(made[0], client, wires, server_context(authority), Recorder(), poller)
        poller.close()
        accepted[0].close()  # whoever has it by now
        server.close()


@pytest.mark.asyncio
async def test_bytes_come_out_as_they_went_in(ends: Ends) -> None:
    ours = await ends.started()
    await ends.client.send(b"question")
    await until(lambda: ends.other.data == b"question")
    ours.offer(memoryview(b"answer"))
    assert await ends.client.receive(6) == b"answer"
    assert (ours.bytes_read, ours.bytes_written) == (8, 6)


@pytest.mark.asyncio
async def test_what_was_read_before_the_take_over_is_not_lost(ends: Ends) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        ends.client.session.do_handshake()
    await ends.client.flush()
    arrived = asyncio.Event()
    ends.plain.read_early(arrived.set)
    await arrived.wait()
    assert ends.plain.early
    ours = await ends.started()
    await ends.client.send(b"question")
    await until(lambda: ends.other.data == b"question")
    assert ours.bytes_read == 8


@pytest.mark.asyncio
async def test_what_comes_with_the_end_of_the_handshake_waits_for_the_start(ends: Ends) -> None:
    ours = await ends.established()
    await ends.client.send(b"early")
    assert not ends.other.data
    ours.start(ends.other, ends.other)
    await until(lambda: ends.other.data == b"early")


@pytest.mark.asyncio
async def test_each_direction_ends_by_itself(ends: Ends) -> None:
    ours = await ends.started()
    await ends.client.send(b"last words")
    await ends.client.notify_close()
    ends.client.wire.end()
    await until(lambda: ends.other.ended)
    assert ends.other.data == b"last words"
    assert not ends.other.closed
    ours.offer(memoryview(b"still here"))
    ours.offer_end()
    assert await ends.client.receive_all() == b"still here"
    await until(lambda: bool(ends.other.closed))
    assert ends.other.closed == [None]


@pytest.mark.asyncio
async def test_the_server_may_end_first(ends: Ends) -> None:
    ours = await ends.started()
    ours.offer(memoryview(b"bye"))
    ours.offer_end()
    assert await ends.client.receive_all() == b"bye"
    if ends.client.session.version() == "TLSv1.3":
        await ends.client.send(b"but wait")
        await until(lambda: ends.other.data == b"but wait")
    await ends.client.notify_close()
    await until(lambda: ends.other.ended and bool(ends.other.closed))
    assert ends.other.closed == [None]


@pytest.mark.asyncio
async def test_a_client_that_reads_all_and_leaves_without_close_notify_is_in_order(ends: Ends) -> None:
    ours = await ends.started()
    ours.offer_end()
    assert await ends.client.receive_all() == b""
    ends.client.wire.end()
    await until(lambda: bool(ends.other.closed))
    assert ends.other.closed == [None]


@pytest.mark.asyncio
async def test_a_truncated_session_is_a_reset(ends: Ends) -> None:
    await ends.started()
    await ends.client.send(b"half a mess")
    ends.client.wire.end()
    await until(lambda: bool(ends.other.closed))
    assert isinstance(ends.other.closed[0], ConnectionError)
    assert not ends.other.ended


@pytest.mark.asyncio
async def test_changed_bytes_are_a_reset(ends: Ends) -> None:
    await ends.started()
    ends.client.session.write(b"something")
    data = bytearray(ends.client._outgoing.read())
    data[-1] ^= 1
    await ends.client.wire.send(bytes(data))
    await until(lambda: bool(ends.other.closed))
    assert isinstance(ends.other.closed[0], ConnectionError)
    assert not ends.other.data


@pytest.mark.asyncio
async def test_an_abort_is_a_reset_to_the_client(ends: Ends) -> None:
    ours = await ends.started()
    ours.abort(ErrorCode.CANCEL)
    assert await ends.client.wire.ending() == "reset"


@pytest.mark.asyncio
async def test_an_orderly_abort_says_so(ends: Ends) -> None:
    ours = await ends.started()
    ours.offer(memoryview(b"all of it"))
    ours.abort(ErrorCode.NO_ERROR)
    assert await ends.client.receive_all() == b"all of it"


@pytest.mark.asyncio
async def test_no_more_is_read_than_the_sink_takes(ends: Ends) -> None:
    ours = await ends.established()
    ends.other.space = 1000
    ours.start(ends.other, ends.other)
    sending = asyncio.ensure_future(ends.client.send(bytes(32 * 1024 * 1024)))
    await until(lambda: len(ends.other.data) > ends.other.space and not ours.reading)
    held = len(ends.other.data)
    assert held <= ends.other.space + 2 * 16 * 1024
    ends.other.space = 1 << 30
    ours.sink_drained()
    await sending
    await until(lambda: len(ends.other.data) == 32 * 1024 * 1024)


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_stops_the_source(ends: Ends) -> None:
    ours = await ends.started()
    chunk = memoryview(bytes(64 * 1024))
    offered = 0
    while ours.offer(chunk):
        offered += len(chunk)
        assert offered < 64 * 1024 * 1024
    assert ours.room() == 0
    assert ours.queued <= HELD_BYTES + 2 * len(chunk)
    received = await ends.client.receive(offered + len(chunk))
    assert len(received) == offered + len(chunk)
    await until(lambda: ends.other.drained > 0)


@pytest.mark.asyncio
async def test_a_client_that_is_silent_is_given_up(ends: Ends) -> None:
    ours = ends.take_over()
    with pytest.raises(TunnelTlsError) as caught:
        await ours.handshake(0)
    assert caught.value.code == "tls_handshake_timeout"


@pytest.mark.asyncio
async def test_a_client_that_leaves_in_the_handshake_ends_it(ends: Ends) -> None:
    ours = ends.take_over()
    shaking = asyncio.ensure_future(ours.handshake(PATIENT_SECONDS))
    ends.client.wire.end()
    with pytest.raises(TunnelTlsError) as caught:
        await shaking
    assert caught.value.code == "tls_closed"


@pytest.mark.asyncio
async def test_something_else_than_tls_ends_it(ends: Ends) -> None:
    ours = ends.take_over()
    shaking = asyncio.ensure_future(ours.handshake(PATIENT_SECONDS))
    await ends.client.wire.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TunnelTlsError) as caught:
        await shaking
    assert caught.value.code == "tls_not_tls"


@pytest.mark.asyncio
async def test_a_client_that_distrusts_us_is_reported_by_its_alert(ends: Ends) -> None:
    strange = TlsClient(ends.client.wire, client_context(WebAuthority("another CA").pem), NAME)
    ours = ends.take_over()
    shaking = asyncio.ensure_future(ours.handshake(PATIENT_SECONDS))
    with pytest.raises(ssl.SSLCertVerificationError):
        await strange.handshake()
    await strange.flush()
    try:
        await shaking
    except TunnelTlsError as error:
        assert error.code == "alert_unknown_ca"
    else:
        raise AssertionError("the handshake succeeded")


@pytest.mark.asyncio
async def test_who_has_left_cannot_be_taken_over(ends: Ends) -> None:
    arrived = asyncio.Event()
    ends.plain.read_early(arrived.set)
    ends.client.wire.end()
    await arrived.wait()
    with pytest.raises(TunnelTlsError):
        ends.take_over()
