"""A connection to a listener of ours, made anew for each test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

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
