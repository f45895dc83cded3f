"""The server name that a client is about to ask for, looked at while its bytes wait to be forwarded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztun.net.client_hello import ClientHello, ClientHelloError, read_client_hello

if TYPE_CHECKING:
    from ztun.net.app_socket import AppSocket


async def peek_client_hello(client: AppSocket, limit: float) -> ClientHello | None:
    """The ClientHello of a connection that has not started; None when none came within ``limit`` seconds.

    Nor does one come when the client speaks something else or ends; that is known at its first wrong byte. All
    bytes stay in ``client`` and are forwarded unchanged.
    """
    try:
        async with asyncio.timeout(limit):
            while True:
                hello = read_client_hello(client.early)
                if hello is not None:
                    return hello
                if client.read_ended or client.closed:
                    return None
                await early_bytes(client)
    except (ClientHelloError, TimeoutError):
        return None


async def early_bytes(client: AppSocket) -> None:
    """Wait until there are more bytes in ``client.early`` than now, or the client has ended."""
    arrived = asyncio.get_running_loop().create_future()
    client.read_early(lambda: _wake(arrived))
    await arrived


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
