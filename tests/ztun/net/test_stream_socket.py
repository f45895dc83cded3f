"""What every socket of the data plane does with its queue, its ends and its errors, whatever it carries."""

from __future__ import annotations

import asyncio
import socket

import pytest
import pytest_asyncio

from tests.ztun.proxy.mesh import until
from ztun.net import stream_socket
from ztun.net.poller import Poller
from ztun.net.stream_socket import StreamSocket

pytestmark = pytest.mark.net

HIGH, LOW = 64 * 1024, 16 * 1024
PIECE = bytes(range(256)) * 256  # 64 KiB
PIECES = 64  # more than a pair of sockets holds


class Recording(StreamSocket):
    """Keeps what it hears."""

    def __init__(self, poller: Poller) -> None:
        super().__init__(poller, high=HIGH, low=LOW)
        self.space = memoryview(bytearray(1024))
        self.data = b""
        self.heard: list[str] = []
        self.error: Exception | None = None

    def _space(self) -> memoryview:
        return self.space

    def _received(self, size: int) -> None:
        self.data += bytes(self.space[:size])

    def _ended(self) -> None:
        self.heard.append("ended")

    def _congested(self) -> None:
        self.heard.append("congested")

    def _relaxed(self) -> None:
        self.heard.append("relaxed")

    def _gone(self, error: Exception | None) -> None:
        self.heard.append("gone")
        self.error = error


@pytest_asyncio.fixture
async def ours(pair: tuple[socket.socket, socket.socket]) -> Recording:
    made = Recording(Poller(asyncio.get_running_loop()))
    made.connected(pair[0])
    return made


@pytest.fixture
def theirs(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[1]


async def read_all(theirs: socket.socket, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < count and (piece := await loop.sock_recv(theirs, 1 << 20)):
        data += piece
    return data


@pytest.mark.asyncio
async def test_nothing_is_read_before_it_is_asked_for(ours: Recording, theirs: socket.socket) -> None:
    theirs.send(b"early")
    await asyncio.sleep(0)
    assert ours.data == b""
    ours._resume()
    await until(lambda: ours.data == b"early")
    ours._end(None)


@pytest.mark.asyncio
async def test_what_the_kernel_does_not_take_is_queued_and_sent_in_order(
    ours: Recording, theirs: socket.socket
) -> None:
    for _ in range(PIECES):
        ours._write(PIECE)
    assert ours.congested
    assert ours.queued > HIGH
    assert ours.heard == ["congested"]
    assert await read_all(theirs, PIECES * len(PIECE)) == PIECE * PIECES
    await until(lambda: not ours.queued)
    assert ours.heard == ["congested", "relaxed"]
    ours._end(None)


@pytest.mark.asyncio
async def test_the_end_goes_out_behind_the_queue_and_reading_goes_on(
    ours: Recording, theirs: socket.socket
) -> None:
    for _ in range(PIECES):
        ours._write(PIECE)
    ours._write_end()
    assert len(await read_all(theirs, PIECES * len(PIECE) + 1)) == PIECES * len(PIECE)
    theirs.send(b"answer")
    ours._resume()
    await until(lambda: ours.data == b"answer")
    assert not ours.closed
    ours._end(None)


@pytest.mark.asyncio
async def test_who_finishes_delivers_first_and_reads_no_more(ours: Recording, theirs: socket.socket) -> None:
    for _ in range(PIECES):
        ours._write(PIECE)
    ours._resume()
    ours._finish()
    assert not ours.reading
    assert len(await read_all(theirs, PIECES * len(PIECE))) == PIECES * len(PIECE)
    await until(lambda: ours.closed)
    assert ours.heard[-1] == "gone"
    assert ours.error is None


@pytest.mark.asyncio
async def test_the_end_of_the_peer_is_heard_once_and_writing_goes_on(
    ours: Recording, theirs: socket.socket
) -> None:
    ours._resume()
    theirs.send(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: ours.heard == ["ended"])
    assert ours.data == b"last words"
    assert not ours.reading
    ours._write(b"still here")
    assert await read_all(theirs, 10) == b"still here"
    ours._end(None)


@pytest.mark.asyncio
async def test_a_reset_of_the_peer_closes_with_its_error(ours: Recording, theirs: socket.socket) -> None:
    ours._resume()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    await until(lambda: ours.closed)
    assert isinstance(ours.error, ConnectionResetError)
    ours._write(b"nobody")  # harmless
    assert ours.heard == ["gone"]


@pytest.mark.asyncio
async def test_a_reset_of_ours_reaches_the_peer(ours: Recording, theirs: socket.socket) -> None:
    ours._reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().sock_recv(theirs, 1)


@pytest.mark.asyncio
async def test_a_socket_that_is_handed_over_is_neither_watched_nor_closed(
    ours: Recording, theirs: socket.socket
) -> None:
    ours._resume()
    sock = ours._hand_over()
    theirs.send(b"x")
    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"x"
    assert ours.data == b""
    assert ours.heard == []


@pytest.mark.asyncio
async def test_an_error_of_its_user_resets_the_connection_and_is_reported(
    ours: Recording, theirs: socket.socket
) -> None:
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail(size: int) -> None:
        raise ValueError("a test")

    ours._received = fail  # type: ignore[method-assign]
    ours._resume()
    theirs.send(b"x")
    await until(lambda: ours.closed and bool(reported))
    assert isinstance(ours.error, ValueError)
    with pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().sock_recv(theirs, 1)


@pytest.mark.asyncio
async def test_who_takes_nothing_of_the_rest_is_given_up(
    ours: Recording, theirs: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_socket, "UNREAD_SECONDS", 0.01)
    for _ in range(PIECES):
        ours._write(PIECE)
    ours._finish()
    assert not ours.closed
    await until(lambda: ours.closed)
    assert isinstance(ours.error, stream_socket.Unread)
