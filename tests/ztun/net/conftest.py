"""Connections, made anew for each test: to a listener of ours, and between two plain sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.ztun.net.ends import Ends, Recorder
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.mesh import LoopbackAddresses, until
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import AppSocket
from ztun.net.dial import SocketOptions
from ztun.net.listeners import listen
from ztun.net.poller import Poller


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    made: list[AppSocket] = []

    def accept(sock: socket.SocketType, *_: object) -> None:
        made.append(AppSocket(poller, sock))

    poller = Poller(asyncio.get_running_loop())
    server = listen(poller, LoopbackAddresses().take(), 0, accept, SocketOptions(), purpose="a test")
    async with Wires() as wires:
        theirs = await wires.dial(server.address)
        await until(lambda: bool(made))
        yield Ends(made[0], theirs, Recorder())
        made[0].abort(ErrorCode.CANCEL)
        server.close()
        poller.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected TCP sockets, so that RST and FIN are what they are on the wire."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs
