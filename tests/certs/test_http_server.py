from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from certs.endpoint import listen_on
from certs.http_server import BoundedProtocol, BoundedServer, Places

pytestmark = pytest.mark.net

PLACES = 3
BIG = 32 * 1024 * 1024  # more than two sockets' buffers hold
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Site:
    """A server of few places and little patience, and what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.release = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def answer(self, request: Request) -> Response:
        self.asked.put_nowait(request.url.path)
        if request.url.path == "/held":
            await self.release.wait()
        return PlainTextResponse(b"x" * BIG if request.url.path == "/big" else b"done")

    @contextlib.asynccontextmanager
    async def serving(
        self, *, read_seconds: float = 60.0, write_seconds: float = 60.0, grace_seconds: int = 1
    ) -> AsyncIterator[None]:
        app = Starlette(routes=[Route("/{path}", self.answer, methods=["GET", "POST"])])
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=grace_seconds,
        )
        server = BoundedServer(
            config, connections=PLACES, read_seconds=read_seconds, write_seconds=write_seconds
        )
        with listen_on("127.0.0.1", 0) as listening:
            self.port = listening.getsockname()[1]
            task = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                yield server
            finally:
                server.should_exit = True
                await task

    async def connect(self, said: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        writer.write(said)
        await writer.drain()
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


def question(path: str, *, length: int = 0) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()


async def answered(streams: Streams) -> bool:
    """Whether there is an answer; none if the connection ended."""
    try:
        head = await streams[0].readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return head.startswith(b"HTTP/1.1 200") and await streams[0].readexactly(4) == b"done"


async def ended(streams: Streams) -> bool:
    """Wait for the end of a connection; true when nothing came before it."""
    try:
        return await streams[0].read() == b""
    except ConnectionError:
        return True


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.close()


@pytest.mark.asyncio
async def test_newcomer_has_the_place_of_the_one_that_has_asked_nothing_longest(site: Site) -> None:
    async with site.serving() as server:
        kept = await site.connect(question("/one"))
        assert await answered(kept)
        silent = [await site.connect(part) for part in (b"", b"POST /half HTTP/1.1\r\n")]
        while len(server.server_state.connections) < PLACES:
            await asyncio.sleep(0)
        kept[1].write(question("/two"))
        assert await answered(kept)
        for _ in range(2):
            silent.append(await site.connect())
            assert await ended(silent.pop(0))
        for streams in (kept, *silent):
            streams[1].write(question("/three"))
            assert await answered(streams)


@pytest.mark.asyncio
async def test_who_is_answered_keeps_the_place(site: Site) -> None:
    async with site.serving():
        held = [await site.connect(question("/held", length=length)) for length in (0, 0, 4)]
        for _ in held:
            await site.asked.get()
        for _ in range(PLACES):
            assert await ended(await site.connect(question("/more")))
        assert site.asked.empty()
        site.release.set()
        for streams in held:
            assert await answered(streams)
        assert await answered(await site.connect(question("/more")))


@pytest.mark.asyncio
async def test_flood_of_silent_connections_shuts_nobody_out(site: Site) -> None:
    async with site.serving():
        flood = [await site.connect() for _ in range(20 * PLACES)]
        assert await answered(await site.connect(question("/one")))
        assert all([await ended(streams) for streams in flood[: -PLACES + 1]])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nhost: ", question("/one", length=10), question("/one")], ids=str
)
async def test_wait_for_a_question_ends(site: Site, said: bytes) -> None:
    """Also for the rest of one that was answered early, however often a byte of it comes."""
    async with site.serving(read_seconds=0.3):
        streams = await site.connect(said)
        if said.startswith(b"POST"):
            assert await answered(streams)
        end = asyncio.ensure_future(ended(streams))
        while not end.done() and said.endswith(b"10\r\n\r\n"):
            streams[1].write(b"x")
            await asyncio.wait({end}, timeout=0.1)
        assert await end


@pytest.mark.asyncio
async def test_reader_that_takes_nothing_is_given_up(site: Site) -> None:
    async with site.serving(write_seconds=0.1) as server:
        reader, writer = await site.connect()
        writer.transport.pause_reading()
        writer.write(question("/big"))
        await site.asked.get()
        while server.server_state.connections:
            await asyncio.sleep(0.01)
        writer.transport.resume_reading()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(BIG)


@pytest.mark.asyncio
async def test_reader_that_is_slow_gets_everything(site: Site) -> None:
    """However long it takes, as long as it takes something."""
    async with site.serving(write_seconds=0.1):
        streams = await site.connect(question("/big"))
        await streams[0].readuntil(b"\r\n\r\n")
        for _ in range(64):
            assert len(await streams[0].readexactly(BIG // 64)) == BIG // 64
            await asyncio.sleep(
                0.01
            )  # 64 of them are longer than the server waits for one that takes nothing


@pytest.mark.asyncio
async def test_server_that_stops_sends_what_it_has_begun(site: Site) -> None:
    async with site.serving(grace_seconds=60):
        streams = await site.connect(question("/big"))
        await streams[0].readuntil(b"\r\n\r\n")
        rest = asyncio.ensure_future(streams[0].readexactly(BIG))
    assert len(await rest) == BIG


@pytest.mark.asyncio
async def test_questions_sent_together_are_answered_in_turn(site: Site) -> None:
    async with site.serving():
        streams = await site.connect(question("/one") + question("/two"))
        assert await answered(streams)
        assert await answered(streams)
        assert [site.asked.get_nowait() for _ in range(2)] == ["/one", "/two"]


@pytest.mark.asyncio
async def test_server_that_stops_does_not_wait_for_who_asks_nothing(site: Site) -> None:
    async with site.serving():
        silent = [await site.connect(), await site.connect(b"GET ")]
    assert all([await ended(streams) for streams in silent])


def test_places_go_to_newcomers_in_the_order_of_waiting() -> None:
    ended: list[str] = []
    places = Places(2)
    for name in ("a", "b"):
        assert places.take(name, lambda name=name: ended.append(name))
    places.answer("a")
    places.wait("a", lambda: ended.append("a again"))
    assert places.take("c", lambda: ended.append("c"))
    assert ended == ["b"], "a has waited less"
    assert not places.keep("b", lambda: None)
    places.wait("b", lambda: None)
    places.answer("b")
    for name in ("a", "c"):
        places.answer(name)
    assert not places.take("d", lambda: None)
    places.leave("a")
    assert places.take("d", lambda: ended.append("d"))
    places.wait("c", lambda: ended.append("c"))
    places.renew("d")
    assert places.take("e", lambda: None)
    assert ended[-1] == "c", "d has read meanwhile"
