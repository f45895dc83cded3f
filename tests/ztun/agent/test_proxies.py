"""ZDS from the agent's end: proxies that come and go, one that says nothing, one that lies, and many."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.ztun.agent.zds_proxy import ZdsProxy
from ztun.agent.conversation import Conversation
from ztun.agent.proxies import MAX_PROXIES, Proxies
from ztun.agent.unix_socket import listen
from ztun.errors import ConfigError, ZdsError
from ztun.zds.messages import AddWorkload, DelWorkload, Request, SnapshotSent, encode_ack, encode_hello

pytestmark = pytest.mark.net

WEB = AddWorkload("uid", "web", "shop", "seller")


class Ground:
    """Proxies under test, whose snapshot is ``told``."""

    def __init__(self, path: Path, deadline: float = 20.0) -> None:
        self.told: list[Request] = []
        self.changes = asyncio.Event()
        self.proxies = Proxies(path, introduce=self._introduce, changed=self.changes.set, deadline=deadline)

    async def _introduce(self, conversation: Conversation) -> None:
        for request in [*self.told, SnapshotSent()]:
            ack = await conversation.request(request, 0 if isinstance(request, AddWorkload) else None)
            if ack.error:
                raise ZdsError("zds_refused", ack.error)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changes.clear()
            await self.changes.wait()

    def proxy(self, answer: Callable[[Request], str] = lambda request: "") -> ZdsProxy:
        return ZdsProxy(self.proxies.path, answer)

    def raw(self, first: bytes = encode_hello()) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(30)
        sock.connect(str(self.proxies.path))
        if first:
            sock.send(first)
        return sock


@pytest_asyncio.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    ground = Ground(tmp_path / "zds.sock")
    ground.proxies.open()
    yield ground
    await ground.proxies.close()
    assert not ground.proxies.path.exists()


async def in_thread(work: Callable[[], object]) -> object:
    return await asyncio.to_thread(work)


@pytest.mark.asyncio
async def test_a_proxy_is_told_everything_and_then_what_is_new(ground: Ground) -> None:
    ground.told = [WEB]
    with ground.proxy() as proxy:
        await ground.until(lambda: len(ground.proxies) == 1)
        assert proxy.requests == [WEB, SnapshotSent()]
        other = AddWorkload("other", "db", "shop", "keeper")
        assert await ground.proxies.add(other, 0) is ground.proxies.latest
        await ground.proxies.delete("uid")
        assert proxy.requests[2:] == [other, DelWorkload("uid")]
        status = os.fstat(0)
        assert proxy.namespaces == {"other": (status.st_dev, status.st_ino)}
    await ground.until(lambda: len(ground.proxies) == 0)


@pytest.mark.asyncio
async def test_of_two_proxies_the_latest_is_told_who_comes_and_both_who_goes(ground: Ground) -> None:
    with ground.proxy() as first:
        await ground.until(lambda: len(ground.proxies) == 1)
        with ground.proxy() as second:
            await ground.until(lambda: len(ground.proxies) == 2 and second.has_snapshot)
            await ground.proxies.add(WEB, 0)
            await ground.proxies.delete("uid")
            assert first.requests == [SnapshotSent(), DelWorkload("uid")]
            assert second.requests == [SnapshotSent(), WEB, DelWorkload("uid")]
        await ground.until(lambda: len(ground.proxies) == 1)
        await ground.proxies.add(WEB, 0)
        assert first.requests[-1] == WEB


@pytest.mark.asyncio
async def test_without_a_proxy_nobody_takes_a_pod(ground: Ground) -> None:
    with pytest.raises(ZdsError) as raised:
        await ground.proxies.add(WEB, 0)
    assert raised.value.code == "zds_no_proxy"
    assert str(ground.proxies.path) in str(raised.value)
    await ground.proxies.delete("uid")


@pytest.mark.asyncio
async def test_a_refusal_is_told_with_its_reason(ground: Ground) -> None:
    with ground.proxy(lambda request: "full" if isinstance(request, AddWorkload) else ""):
        await ground.until(lambda: len(ground.proxies) == 1)
        with pytest.raises(ZdsError, match="full") as raised:
            await ground.proxies.add(WEB, 0)
        assert raised.value.code == "zds_refused"
        assert len(ground.proxies) == 1


@pytest.mark.asyncio
async def test_a_refused_snapshot_ends_the_connection(ground: Ground) -> None:
    with ground.proxy(lambda request: "no") as proxy:
        await in_thread(proxy.ended.wait)
    assert len(ground.proxies) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "first",
    [b"\xff\xff\xff", encode_hello(2), b"", b"x" * 5000],
    ids=["noise", "another version", "an empty packet", "a packet that is too long"],
)
async def test_who_does_not_say_hello_is_hung_up_on(ground: Ground, first: bytes) -> None:
    with ground.raw(b"") as sock:
        sock.send(first)
        assert await in_thread(lambda: sock.recv(100)) == b""
    assert len(ground.proxies) == 0


@pytest.mark.asyncio
async def test_who_speaks_out_of_turn_is_hung_up_on(ground: Ground) -> None:
    with ground.raw() as sock:
        await in_thread(lambda: sock.recv(1000))
        sock.send(encode_ack())
        await ground.until(lambda: len(ground.proxies) == 1)
        sock.send(encode_ack())
        assert await in_thread(lambda: sock.recv(100)) == b""


@pytest.mark.asyncio
async def test_an_answer_that_is_none_ends_the_connection(ground: Ground) -> None:
    with ground.raw() as sock:
        await in_thread(lambda: sock.recv(1000))
        sock.send(b"\xff\xff")
        assert await in_thread(lambda: sock.recv(100)) == b""


@pytest.mark.asyncio
async def test_who_stays_silent_is_hung_up_on(tmp_path: Path) -> None:
    ground = Ground(tmp_path / "zds.sock", deadline=0.05)
    ground.proxies.open()
    try:
        with ground.raw(b"") as silent:
            assert await in_thread(lambda: silent.recv(100)) == b""
        with ground.raw() as no_answer:
            assert await in_thread(lambda: no_answer.recv(1000))
            assert await in_thread(lambda: no_answer.recv(100)) == b""
    finally:
        await ground.proxies.close()


@pytest.mark.asyncio
async def test_a_proxy_that_dies_over_an_answer_is_noticed_at_once(ground: Ground) -> None:
    with ground.raw() as sock:
        await in_thread(lambda: sock.recv(1000))
        sock.send(encode_ack())
        await ground.until(lambda: len(ground.proxies) == 1)
        waiting = asyncio.create_task(ground.proxies.add(WEB, 0))
        assert await in_thread(lambda: sock.recv(1000))
    with pytest.raises(ZdsError) as raised:
        await waiting
    assert raised.value.code == "zds_closed"


@pytest.mark.asyncio
async def test_proxies_beyond_the_limit_are_turned_away(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztun.agent.proxies.ACCEPT_SECONDS", 0)
    socks = [ground.raw(b"") for _ in range(MAX_PROXIES)]
    try:
        with ground.raw(b"") as one_more:
            assert await in_thread(lambda: one_more.recv(100)) == b""
        socks[-1].send(encode_hello())
        assert await in_thread(lambda: socks[-1].recv(1000))
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.asyncio
async def test_no_descriptor_is_left(ground: Ground) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with ground.proxy():
            await ground.until(lambda: len(ground.proxies) == 1)
            await ground.proxies.add(WEB, 0)
        await ground.until(lambda: len(ground.proxies) == 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_socket_that_a_dead_agent_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "zds.sock"
    with listen(path, socket.SOCK_SEQPACKET, "--uds"):
        with pytest.raises(ConfigError, match="somebody listens there already"):
            listen(path, socket.SOCK_SEQPACKET, "--uds")
        with pytest.raises(ConfigError, match="somebody listens there already"):
            listen(path, socket.SOCK_STREAM, "--control")
        assert path.stat().st_mode & 0o777 == 0o600
    listen(path, socket.SOCK_SEQPACKET, "--uds").close()


@pytest.mark.parametrize("place", ["file/zds.sock", "x" * 200], ids=["below a file", "too long"])
def test_a_place_that_no_socket_can_have(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as raised:
        listen(tmp_path / place, socket.SOCK_SEQPACKET, "--uds")
    assert raised.value.code == "socket_unusable"
    assert "--uds" in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize("what", ["file", "directory", "link to a file", "link to nowhere"])
def test_what_is_no_socket_is_not_replaced(tmp_path: Path, what: str) -> None:
    path, file = tmp_path / "agent.yaml", tmp_path / "file"
    file.write_text("precious")
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(file if what == "link to a file" else tmp_path / "nowhere")
    before = path.lstat().st_ino
    with pytest.raises(ConfigError, match="something else than a socket") as raised:
        listen(path, socket.SOCK_STREAM, "--control")
    assert raised.value.code == "socket_unusable"
    assert f"--control {path}" in str(raised.value)
    assert raised.value.hint
    assert path.lstat().st_ino == before
    assert file.read_text() == "precious"
    assert {one.name for one in tmp_path.iterdir()} == {"agent.yaml", "file"}


def test_a_file_where_the_socket_is_made_is_not_replaced(tmp_path: Path) -> None:
    draft = tmp_path / ".zds.sock.new"
    draft.write_text("precious")
    with pytest.raises(ConfigError, match=f"{draft}: there is something else"):
        listen(tmp_path / "zds.sock", socket.SOCK_SEQPACKET, "--uds")
    assert draft.read_text() == "precious"
