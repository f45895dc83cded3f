"""The proxy's end of the socket against an agent of the test's own, packet by packet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ztun.errors import CaptureError, ZdsError
from ztun.net.namespaces import NetworkNamespace
from ztun.zds.client import ZdsClient
from ztun.zds.messages import (
    MAX_MESSAGE_BYTES,
    AddWorkload,
    DelWorkload,
    Hello,
    KeepWorkload,
    Request,
    SnapshotSent,
    decode_ack,
    decode_hello,
    encode_request,
)

pytestmark = pytest.mark.net

A, B = AddWorkload("uid-a", "a", "ns", "sa"), AddWorkload("uid-b", "b", "ns", "sa")
OWN = "/proc/self/ns/net"
NO_INFO = b"\x0a\x07\x0a\x05uid-a"


class Serving:
    """Who serves the pods: keeps their namespaces open. ``broken`` cannot be started."""

    def __init__(self) -> None:
        self.pods: dict[str, NetworkNamespace] = {}
        self.broken: set[str] = set()
        self.started: asyncio.Queue[str] = asyncio.Queue()

    async def start(self, pod: AddWorkload, namespace: NetworkNamespace) -> None:
        self.started.put_nowait(pod.uid)
        if pod.uid in self.broken:
            raise CaptureError("broken", "no luck")
        assert pod.uid not in self.pods
        self.pods[pod.uid] = namespace

    async def stop(self, uid: str) -> None:
        self.pods.pop(uid).close()


class Agent:
    """The other end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        self._listener.listen()
        self.proxy: socket.socket | None = None

    async def accept(self) -> Hello:
        """Wait for a proxy."""
        if self.proxy is not None:
            self.proxy.close()
        self.proxy, _ = await self._loop.sock_accept(self._listener)
        self.proxy.setblocking(False)
        return decode_hello(await self._loop.sock_recv(self.proxy, 4096))

    def send(self, data: bytes, *paths: str) -> None:
        """Send a packet with a descriptor for each path."""
        assert self.proxy is not None
        with contextlib.ExitStack() as stack:
            descriptors = [os.open(path, os.O_RDONLY) for path in paths]
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            socket.send_fds(self.proxy, [data], descriptors)

    async def answer(self) -> str:
        """The error of the next answer."""
        assert self.proxy is not None
        return decode_ack(await self._loop.sock_recv(self.proxy, 4096)).error

    async def ask(self, request: Request, *paths: str) -> str:
        """Send a request and wait for its answer."""
        self.send(encode_request(request), *paths)
        return await self.answer()

    async def hung_up(self) -> bool:
        """Wait for the end of the connection; nothing comes before it."""
        assert self.proxy is not None
        return await self._loop.sock_recv(self.proxy, 4096) == b""

    def close(self) -> None:
        if self.proxy is not None:
            self.proxy.close()
        self._listener.close()
        self.path.unlink()


class World:
    """A client that runs, whoever serves for it, and an agent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.serving = Serving()
        self.client = ZdsClient(path, self.serving, rng=random.Random(7), changed=lambda: self.changed.set())
        self.changed = asyncio.Event()
        self.agent = Agent(path)
        self.task = asyncio.create_task(self.client.run())

    async def until(self, condition: Any) -> None:
        """Wait for the client to say that something has changed, until it is this."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def end(self) -> None:
        self.client.close()
        with contextlib.suppress(ZdsError):
            await self.task
        for namespace in self.serving.pods.values():
            namespace.close()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "zds")
    try:
        yield world
    finally:
        world.agent.close()
        await world.end()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.asyncio
async def test_hello_pods_snapshot(world: World) -> None:
    assert (await world.agent.accept()).version == 1
    assert not world.client.ready
    assert await world.agent.ask(A, OWN) == ""
    assert await world.agent.ask(KeepWorkload("uid-x")) == ""
    assert not world.client.ready
    assert await world.agent.ask(SnapshotSent()) == ""
    await world.until(lambda: world.client.ready)
    assert set(world.serving.pods) == {"uid-a"}
    status = Path(OWN).stat()
    assert world.serving.pods["uid-a"].key == (status.st_dev, status.st_ino)
    assert await world.agent.ask(DelWorkload("uid-a")) == ""
    assert not world.serving.pods


@pytest.mark.asyncio
async def test_one_answer_for_each_request_and_in_order(world: World) -> None:
    await world.agent.accept()
    world.serving.broken.add("uid-b")
    for request in (A, B):
        world.agent.send(encode_request(request), OWN)
    world.agent.send(encode_request(SnapshotSent()))
    assert [await world.agent.answer() for _ in range(3)] == ["", "failure to start proxy : no luck", ""]
    assert world.client.pending == (B,)
    assert not world.client.ready


@pytest.mark.asyncio
async def test_a_pod_that_could_not_be_started_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztun.zds.client.RETRY_SECONDS", 0.01)
    await world.agent.accept()
    world.serving.broken.add("uid-a")
    assert await world.agent.ask(A, OWN) == "failure to start proxy : no luck"
    assert await world.agent.ask(SnapshotSent()) == ""
    for _ in range(3):
        assert await world.serving.started.get() == "uid-a"
    world.serving.broken.clear()
    await world.until(lambda: world.client.ready)
    assert set(world.serving.pods) == {"uid-a"}


@pytest.mark.asyncio
async def test_a_proxy_that_lost_its_agent_connects_again_and_reconciles(world: World) -> None:
    await world.agent.accept()
    for pod in (A, B):
        await world.agent.ask(pod, OWN)
    await world.agent.ask(SnapshotSent())
    await world.until(lambda: world.client.ready)
    world.agent.close()
    await world.until(lambda: not world.client.ready)
    assert set(world.serving.pods) == {"uid-a", "uid-b"}
    world.agent = Agent(world.path)
    await world.agent.accept()
    assert await world.agent.ask(A, OWN) == ""
    assert await world.agent.ask(SnapshotSent()) == ""
    await world.until(lambda: world.client.ready)
    assert set(world.serving.pods) == {"uid-a"}


TOO_LONG = encode_request(DelWorkload("u" * 100)) + b"\x00" * MAX_MESSAGE_BYTES
NOT_UNDERSTOOD = [
    pytest.param(b"\xff\xff", (), "no WorkloadRequest", id="no message"),
    pytest.param(b"\x7a\x00", (), "no request that this version knows", id="unknown request"),
    pytest.param(encode_request(A), (), "0 descriptors instead of 1", id="add without descriptor"),
    pytest.param(encode_request(A), (OWN, OWN), "2 descriptors instead of 1", id="add with two"),
    pytest.param(encode_request(DelWorkload("u")), (OWN,), "1 descriptors instead of 0", id="del with one"),
    pytest.param(encode_request(KeepWorkload("u")), (OWN,), "1 descriptors instead of 0", id="keep with one"),
    pytest.param(
        encode_request(SnapshotSent()), (OWN,), "1 descriptors instead of 0", id="snapshot with one"
    ),
    pytest.param(TOO_LONG, (), "does not fit", id="too long"),
    pytest.param(encode_request(A), (OWN,) * 100, "does not fit", id="too many descriptors"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("data", "paths", "reason"), NOT_UNDERSTOOD)
async def test_what_is_not_understood_is_answered_hung_up_on_and_leaves_nothing(
    world: World, data: bytes, paths: tuple[str, ...], reason: str
) -> None:
    await world.agent.accept()
    await world.agent.ask(B, OWN)
    before = descriptors()
    world.agent.send(data, *paths)
    assert reason in await world.agent.answer()
    assert await world.agent.hung_up()
    await world.agent.accept()
    assert descriptors() == before
    assert set(world.serving.pods) == {"uid-b"}
    assert await world.agent.ask(B, OWN) == ""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("data", "paths", "code"),
    [
        pytest.param(NO_INFO, (OWN,), "zds_no_workload_info", id="no info"),
        pytest.param(encode_request(KeepWorkload("u")), (), "zds_late_keep", id="keep"),
        pytest.param(encode_request(SnapshotSent()), (), "zds_second_snapshot", id="second snapshot"),
    ],
)
async def test_what_is_impossible_is_answered_and_ends_the_proxy(
    world: World, data: bytes, paths: tuple[str, ...], code: str
) -> None:
    await world.agent.accept()
    await world.agent.ask(SnapshotSent())
    before = descriptors()
    world.agent.send(data, *paths)
    assert await world.agent.answer()
    with pytest.raises(ZdsError) as caught:
        await world.task
    assert caught.value.code == code
    assert await world.agent.hung_up()
    assert descriptors() == before - 1, "our end of the connection"


@pytest.mark.asyncio
async def test_a_descriptor_that_is_no_namespace_is_refused(world: World) -> None:
    await world.agent.accept()
    before = descriptors()
    assert "is not a network namespace" in await world.agent.ask(A, "/dev/null")
    assert await world.agent.ask(SnapshotSent()) == ""
    assert (descriptors(), world.serving.pods) == (before, {})


@pytest.mark.asyncio
async def test_the_same_pod_again_leaves_no_descriptor(world: World) -> None:
    await world.agent.accept()
    await world.agent.ask(A, OWN)
    before = descriptors()
    for _ in range(20):
        assert await world.agent.ask(A, OWN) == ""
    assert descriptors() == before
    assert world.serving.started.qsize() == 1


@pytest.mark.asyncio
async def test_closing_leaves_the_pods_and_hangs_up(world: World) -> None:
    await world.agent.accept()
    await world.agent.ask(A, OWN)
    world.client.close()
    await world.task
    assert await world.agent.hung_up()
    assert set(world.serving.pods) == {"uid-a"}
