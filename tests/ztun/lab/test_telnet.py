"""The command of the examples: the installed one and our own say the same."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ztun.lab.echo import start_echo
from ztun.lab.telnet import telnet_command, typed

pytestmark = [pytest.mark.net, pytest.mark.asyncio]

OWN = [sys.executable, "-m", "ztun.lab.telnet"]
CLIENTS = [
    pytest.param(OWN, id="own"),
    pytest.param(
        ["telnet"],
        id="installed",
        marks=pytest.mark.skipif(shutil.which("telnet") is None, reason="no telnet is installed"),
    ),
]


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    [server] = await start_echo("127.0.0.1", [0], "hello")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("client", CLIENTS)
async def test_lines_are_answered(client: list[str]) -> None:
    async with echo() as port, typed([*client, "127.0.0.1", str(port)]) as conversation:
        assert await conversation.ask("test") == "hello test"
        assert await conversation.ask("again") == "hello again"


async def test_the_spelling_of_the_examples_is_understood() -> None:
    async with echo() as port, typed([*OWN, f"127.0.0.1:{port}"]) as conversation:
        assert await conversation.ask("test") == "hello test"


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_server_that_closes_is_noticed(client: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with typed([*client, "127.0.0.1", str(listener.getsockname()[1])]) as conversation:
            listener.accept()[0].close()
            assert await conversation.closed()
            assert await conversation.ask("anyone there?") is None


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_refused_connection_says_so(client: list[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="refused"):
            async with typed([*client, "127.0.0.1", str(bound.getsockname()[1])]):
                pass


async def test_a_command_without_a_port_is_explained() -> None:
    done = subprocess.run([*OWN, "echo-server"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "HOST PORT" in done.stderr


async def test_the_command_of_the_examples_is_used_where_it_is_installed() -> None:
    command = telnet_command("echo-server", 19000)
    assert command[-2:] == ["echo-server", "19000"]
    assert (command[0] == "telnet") == (shutil.which("telnet") is not None)
