from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztun.lab.dialer import dial
from ztun.lab.process import LabError

pytestmark = pytest.mark.net


@pytest.fixture
def dialer(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pod.sock"
    with subprocess.Popen([sys.executable, "-m", "ztun.lab.dialer", str(path)]) as child:
        try:
            asyncio.run(listens(path))
            yield path
        finally:
            child.terminate()


async def listens(path: Path) -> None:
    """Polls: there is nothing to be told by, as for a pod of another container."""
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.connect(str(path))
                return
        except OSError:
            await asyncio.sleep(0.02)


def test_the_connection_is_that_of_the_other_process(dialer: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, dial(dialer, *server.getsockname()) as client:
        accepted, peer = server.accept()
        with accepted:
            assert peer == client.getsockname()
            client.sendall(b"question")
            assert accepted.recv(64) == b"question"
            accepted.sendall(b"answer")
            accepted.shutdown(socket.SHUT_WR)
            assert client.recv(64) == b"answer"
            assert client.recv(64) == b""  # nobody else holds it open


def test_what_the_pod_was_told_is_said(dialer: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(ConnectionError, match="refused"):
        dial(dialer, "127.0.0.1", free)


def test_a_pod_that_is_not_there_is_an_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nobody\.sock") as raised:
        dial(tmp_path / "nobody.sock", "127.0.0.1", 1)
    assert raised.value.code == "lab_no_dialer"
