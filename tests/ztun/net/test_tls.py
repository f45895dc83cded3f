"""How the socket of a tunnel ends: with everything delivered, and not before the peer has closed or will not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from tests.ztun.proxy.mesh import until
from ztun.net import tls
from ztun.net.poller import Poller
from ztun.net.tls import TlsTransport

pytestmark = pytest.mark.net

LAST_BYTES = 1 << 20  # fits into the buffers of two kernels


class User:
    """Hears of the end."""

    def __init__(self) -> None:
        self.ends: list[Exception | None] = []

    def handshake_done(self, transport: TlsTransport) -> None:
        """Never: the bytes here are not encrypted."""

    def received(self, data: memoryview, now: float) -> None:
        """Never."""

    def congested(self) -> None:
        """Of no interest."""

    def drained(self) -> None:
        """Of no interest."""

    def closed(self, error: Exception | None) -> None:
        self.ends.append(error)


def finishing(pair: tuple[socket.socket, socket.socket]) -> tuple[TlsTransport, User]:
    """A transport whose user has done with it, with bytes under way."""
    user = User()
    transport = TlsTransport(Poller(asyncio.get_running_loop()), user)
    transport.connected(pair[0])
    transport._resume()
    transport._write(bytes(LAST_BYTES))
    transport.close_in_order()
    return transport, user


@pytest.mark.asyncio
async def test_what_the_peer_still_sends_costs_nothing_of_what_we_sent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A WINDOW_UPDATE for the last bytes of an upload would make the kernel answer RST and drop the rest."""
    transport, user = finishing(pair)
    await until(lambda: user.ends == [None])
    theirs, loop, received = pair[1], asyncio.get_running_loop(), 0
    while received < LAST_BYTES:
        await loop.sock_sendall(theirs, b"more room")
        received += len(await loop.sock_recv(theirs, 65_536))
    assert await loop.sock_recv(theirs, 1) == b""
    assert not transport.closed
    theirs.close()
    await until(lambda: transport.closed)
    assert user.ends == [None]


@pytest.mark.asyncio
async def test_a_peer_that_does_not_close_is_waited_for_in_vain_only_once(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LINGER_SECONDS", 0.01)
    transport, user = finishing(pair)
    await until(lambda: transport.closed)
    assert user.ends == [None]
    assert not transport.lingers


@pytest.mark.asyncio
@pytest.mark.parametrize("end", [TlsTransport.abort, TlsTransport.close])
async def test_what_lingers_may_be_ended(
    pair: tuple[socket.socket, socket.socket], end: Callable[[TlsTransport], None]
) -> None:
    transport, user = finishing(pair)
    await until(lambda: transport.lingers)
    end(transport)
    assert transport.closed
    assert not transport.lingers
    await until(lambda: user.ends == [None])
