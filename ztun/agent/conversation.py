"""One proxy's connection on the agent's socket: a question, an answer, and at once known when it breaks."""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket

from ztun.errors import ZdsError
from ztun.zds.messages import (
    MAX_MESSAGE_BYTES,
    VERSION_1,
    Ack,
    Hello,
    Request,
    decode_ack,
    decode_hello,
    encode_request,
)

DEADLINE_SECONDS = 5.0  # for each write and each answer, as istio-cni has it


class Conversation:
    """A connected proxy. ``sock`` is a non-blocking SEQPACKET socket and belongs to this from now on."""

    def __init__(self, sock: socket.socket, number: int, *, deadline: float = DEADLINE_SECONDS) -> None:
        self.number = number
        """Counts connections, so that the log can tell one from another."""
        self.closed = asyncio.Event()
        self._sock = sock
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._one_at_a_time = asyncio.Lock()
        self._answer: asyncio.Future[bytes] | None = self._loop.create_future()
        self._reader = asyncio.create_task(self._read(), name=f"zds connection {number}")

    async def hello(self) -> Hello:
        """Wait for the proxy's introduction; raises :class:`ZdsError` and closes."""
        try:
            hello = decode_hello(await self._answered())
        except ZdsError:
            self.close()
            raise
        if hello.version != VERSION_1:
            self.close()
            raise ZdsError("zds_version", f"the proxy speaks version {hello.version} of ZDS, this agent 1")
        return hello

    async def request(self, request: Request, descriptor: int | None = None) -> Ack:
        """Send one request, with the descriptor of a namespace if there is one, and wait for the answer.

        Raises :class:`ZdsError`: ``zds_timeout``, ``zds_closed``, ``zds_malformed`` (the connection is closed then)
        or ``zds_too_long`` (nothing was sent).
        """
        data = encode_request(request)
        async with self._one_at_a_time:
            if self.closed.is_set():
                raise _gone()
            self._answer = self._loop.create_future()
            try:
                await self._send(data, descriptor)
                return decode_ack(await self._answered())
            except (ZdsError, asyncio.CancelledError):
                self.close()  # a late answer would be taken for that of the next request
                raise

    def close(self) -> None:
        """Hang up."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._reader.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_gone())
            self._answer.exception()  # whether anybody waits for it or not
        self._loop.remove_reader(self._sock)
        self._sock.close()

    async def _send(self, data: bytes, descriptor: int | None) -> None:
        ancillary = []
        if descriptor is not None:
            rights = array.array("i", [descriptor]).tobytes()
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        try:
            async with asyncio.timeout(self._deadline):
                while not self.closed.is_set():
                    try:
                        self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                    except BlockingIOError:
                        await self._writable()
                    else:
                        return
        except TimeoutError as error:
            raise ZdsError("zds_timeout", "the proxy does not read what it is sent") from error
        except OSError as error:
            raise ZdsError("zds_closed", f"the proxy is gone: {error.strerror}") from error
        raise _gone()

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._sock, ready.set)
        try:
            await ready.wait()
        finally:
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_writer(self._sock)

    async def _answered(self) -> bytes:
        assert self._answer is not None
        try:
            async with asyncio.timeout(self._deadline):
                return await self._answer
        except TimeoutError as error:
            raise ZdsError(
                "zds_timeout",
                f"the proxy did not answer within {self._deadline:.0f} s",
                hint="its log says what it is waiting for",
            ) from error
        finally:
            self._answer = None

    async def _read(self) -> None:
        """Everything that arrives: an answer that is waited for, or the end."""
        while True:
            try:
                data = await self._loop.sock_recv(self._sock, MAX_MESSAGE_BYTES + 1)
            except OSError:
                data = b""
            answer = self._answer
            # An empty packet looks like the end; no message that a proxy may send is empty.
            if not data or len(data) > MAX_MESSAGE_BYTES or answer is None or answer.done():
                self.close()
                return
            answer.set_result(data)


def _gone() -> ZdsError:
    return ZdsError("zds_closed", "the proxy closed the connection")
