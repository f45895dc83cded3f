"""An HTTP server that nobody without a question can shut others out of: uvicorn's, with its waits and places bounded.

uvicorn counts a connection that says nothing like one that is being answered, lets it wait for ever, and gives a TLS
handshake a minute that it does not count at all. Here every connection has a place from the moment it is accepted.
When all are taken, the one that has asked nothing, or read nothing of its answer, for the longest time loses its place
to the newcomer: so who wants to keep others out must come faster than they can ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPT_PAUSE_SECONDS = 0.1  # after an accept that failed, as for want of descriptors; asyncio pauses for 1 s

End: TypeAlias = Callable[[], object]
"""Ends a connection at once."""

_log = structlog.get_logger("certs.server")


class Places:
    """The places of a server: who is being answered keeps one, who asks or reads nothing may lose it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[object, End] = OrderedDict()  # the longest first
        self._answered: set[object] = set()

    def take(self, who: object, end: End) -> bool:
        """Take a place for who comes now; false when all are taken by connections that are being answered."""
        if len(self._waiting) + len(self._answered) >= self._most and not self.free():
            return False
        self._waiting[who] = end
        return True

    def free(self) -> bool:
        """End the connection that has asked nothing for the longest time; false when there is none."""
        if not self._waiting:
            return False
        _, end = self._waiting.popitem(last=False)
        end()
        return True

    def keep(self, who: object, end: End) -> bool:
        """Name another way to end one that waits, as long as before; false when it has lost its place meanwhile."""
        if who not in self._waiting:
            return False
        self._waiting[who] = end
        return True

    def renew(self, who: object) -> None:
        """It still reads: others have waited longer."""
        if who in self._waiting:
            self._waiting.move_to_end(who)

    def end(self, idle: Callable[[Any], bool]) -> None:
        """End those that wait and are idle."""
        for who in [one for one in self._waiting if idle(one)]:
            self._waiting.pop(who)()

    def answer(self, who: object) -> None:
        """It has asked: its place is safe."""
        if self._waiting.pop(who, None) is not None:
            self._answered.add(who)

    def wait(self, who: object, end: End) -> None:
        """It was answered, and waits from now on."""
        if who in self._answered:
            self._answered.remove(who)
            self._waiting[who] = end

    def leave(self, who: object) -> None:
        """It has ended."""
        self._waiting.pop(who, None)
        self._answered.discard(who)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a place, and deadlines for a request and for a reader that does not read."""

    places: Places
    read_seconds: float
    write_seconds: float
    _read_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless the place was lost during the handshake."""
        super().connection_made(transport)
        if self.places.keep(self, transport.abort):
            self._await_request()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        if not self._note() and self._read_timer is None:
            self._await_request()

    def on_response_complete(self) -> None:
        """Wait for the next request, if it is not there yet; uvicorn's keep-alive bounds that."""
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        """Give a reader that is behind its time, and its place to others."""
        super().pause_writing()
        self.places.wait(self, self.transport.abort)
        self._await_progress()

    def _await_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.write_seconds, self._look_for_progress, unsent)

    def _look_for_progress(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self.places.renew(self)
            self._await_progress()
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        self._note()
        self._write_timer = _cancelled(self._write_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the place to others."""
        self._read_timer = _cancelled(self._read_timer)
        self._write_timer = _cancelled(self._write_timer)
        self.places.leave(self)
        super().connection_lost(exc)

    def _note(self) -> bool:
        """Whether it is being answered; a next request may have been sent together with the last one."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._read_timer = _cancelled(self._read_timer)
            self.places.answer(self)
            return True
        self.places.wait(self, self.transport.abort)
        return False

    def _await_request(self) -> None:
        self._read_timer = self.loop.call_later(self.read_seconds, self.transport.abort)


class BoundedServer(uvicorn.Server):
    """Serves the :class:`BoundedProtocol` that ``config.http`` names, over TLS if ``config`` says so; no WebSockets.

    ``read_seconds`` is for a handshake, and again until a request that began is there to be answered; ``write_seconds``
    for a reader that takes no byte. Between two requests the keep-alive of ``config`` counts.
    """

    def __init__(
        self, config: uvicorn.Config, *, connections: int, read_seconds: float, write_seconds: float
    ) -> None:
        super().__init__(config)
        self._places = Places(connections)
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and accept connections from ``sockets``: uvicorn would give them no places."""
        await super().startup(sockets=[])
        for listening in sockets or []:
            listening.setblocking(False)
            listening.listen(self.config.backlog)
            self._accepting.append(asyncio.create_task(self._accept(listening)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody, end who waits, and give those who are being answered the time of the configuration."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._places.end(_is_idle)
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        await super().shutdown(sockets)
        for late in list(self.server_state.connections):
            late.transport.abort()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        failing = False
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                if not failing:
                    _log.warning(
                        "no connection accepted", error=str(error), retry_seconds=ACCEPT_PAUSE_SECONDS
                    )
                    self._places.free()  # one descriptor more; were it one for each attempt, others would take them all
                failing = True
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            failing = False
            self._admit(accepted)
            # while more wait to be accepted, sock_accept alone gives nobody else a turn
            await asyncio.sleep(0)

    def _admit(self, accepted: socket.socket) -> None:
        kind: Any = self.config.http_protocol_class
        made: BoundedProtocol = kind(self.config, self.server_state, self.lifespan.state)
        made.places, made.read_seconds, made.write_seconds = (
            self._places,
            self._read_seconds,
            self._write_seconds,
        )
        if not self._places.take(made, lambda: _hang_up(accepted)):
            accepted.close()
            return
        task = asyncio.create_task(self._connect(made, accepted))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _connect(self, made: BoundedProtocol, accepted: socket.socket) -> None:
        """Make a connection of a socket, by a handshake if there is TLS. One that fails is no news."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._read_seconds):
                await loop.connect_accepted_socket(lambda: made, accepted, ssl=self.config.ssl)
        except OSError:
            return
        finally:
            if made.transport is None:  # else the protocol hears of its end
                self._places.leave(made)


def _is_idle(made: BoundedProtocol) -> bool:
    """Whether it has nothing left to send: it is in its handshake, or between two requests."""
    return made.transport is None or not made.transport.get_write_buffer_size()


def _hang_up(accepted: socket.socket) -> None:
    """To whoever reads from the socket it looks as if the other end had closed it; its transport owns it still."""
    with contextlib.suppress(OSError):
        accepted.shutdown(socket.SHUT_RDWR)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
