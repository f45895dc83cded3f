"""Applications inside namespaces: their sockets are made there and used from the test's loop."""

from __future__ import annotations

import asyncio
import socket

from tests.ztun.netns.namespaces import Namespace
from tests.ztun.proxy.applications import Application, Wire, Wires

APP_PORT = 9000


async def listen(
    wires: Wires, namespace: Namespace, ip: str = "", port: int = APP_PORT, *, echo: bool = False
) -> Application:
    """An application inside a namespace."""
    application = Application(wires, echo=echo)
    ip = ip or namespace.ip
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = namespace.inside(lambda: socket.create_server((ip, port), family=family, backlog=256))
    wires.keep_server(await asyncio.start_server(application._serve, sock=sock))
    return application


async def dial(wires: Wires, namespace: Namespace, ip: str, port: int = APP_PORT) -> Wire:
    """A connection out of a namespace; its socket is made there and connects from here."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        sock.setblocking(False)
        return sock

    sock = namespace.inside(make)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    except BaseException:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock)
    return wires.keep(Wire(reader, writer))


async def close(client: Wire, server: Wire) -> None:
    """End in order, the client first."""
    client.end()
    assert await server.receive_all() == b""
    server.end()
    assert await client.ending() == "eof"
