"""A connected TCP socket of the data plane: what it reads it gives away at once, what it cannot write it queues.

A subclass says where bytes go to (``_space``, ``_received``, ``_ended``) and hears of the queue (``_congested``,
``_relaxed``) and of the end (``_gone``). Everything happens inside a call of the poller or of the subclass.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING

from ztun.net.poller import BROKEN, READABLE, WRITABLE

if TYPE_CHECKING:
    from ztun.net.poller import Poller

UNREAD_SECONDS = 45.0
"""How long a peer may take nothing of what is left when all else has ended: as long as a half-closed connection."""
_LINGER_RESET = struct.pack("ii", 1, 0)
_INT = struct.Struct("i")


class Unread(OSError):
    """The peer has stopped to read, and the rest is given up."""


class StreamSocket:
    """One connection. Above ``high`` queued bytes it is congested, until they are ``low`` or fewer.

    Nothing is read before ``_resume``.
    """

    __slots__ = (
        "_end_due",
        "_events",
        "_fd",
        "_finishing",
        "_high",
        "_low",
        "_poller",
        "_queue",
        "_queued",
        "_read_over",
        "_recv_into",
        "_send",
        "_sock",
        "_watched",
        "closed",
        "congested",
    )

    def __init__(self, poller: Poller, *, high: int, low: int) -> None:
        self._poller = poller
        self._high = high
        self._low = low
        self._sock: socket.SocketType | None = None
        self._fd = -1
        self._events = 0
        self._watched = False
        self._queue: deque[memoryview] | None = None  # most connections never have anything in it
        self._queued = 0
        self._read_over = False
        self._end_due = False
        self._finishing = False
        self.congested = False
        self.closed = False

    def connected(self, sock: socket.SocketType) -> None:
        """Take a connected, non-blocking socket; it is closed with this."""
        self._sock = sock
        self._fd = sock.fileno()
        self._recv_into = sock.recv_into
        self._send = sock.send

    @property
    def sock(self) -> socket.SocketType:
        """The socket below; only after ``connected``."""
        assert self._sock is not None
        return self._sock

    @property
    def queued(self) -> int:
        """How many bytes the kernel has not taken yet."""
        return self._queued

    @property
    def unacknowledged(self) -> int:
        """How many bytes the peer's kernel has not confirmed, beside those in the queue."""
        if self._sock is None or self.closed:
            return 0
        try:
            return int(_INT.unpack(fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(_INT.size)))[0])
        except OSError:
            return 0

    @property
    def reading(self) -> bool:
        """Whether it takes what comes."""
        return bool(self._events & READABLE)

    # -- for subclasses to say -------------------------------------------------------------------------------

    def _space(self) -> memoryview:
        """Where to read to; not empty."""
        raise NotImplementedError

    def _received(self, size: int) -> None:
        """So many bytes are in the space."""
        raise NotImplementedError

    def _ended(self) -> None:
        """FIN: there is nothing more to read."""
        raise NotImplementedError

    def _congested(self) -> None:
        """The peer does not read."""

    def _relaxed(self) -> None:
        """The peer reads again."""

    def _gone(self, error: Exception | None) -> None:
        """The socket is closed, by us (None) or because of an error."""
        raise NotImplementedError

    # -- for subclasses to use -------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Read from now on."""
        if not self._events & READABLE and not (self.closed or self._finishing or self._read_over):
            self._want(self._events | READABLE)

    def _pause(self) -> None:
        """Read no more for now."""
        if self._events & READABLE and not self.closed:
            self._want(self._events & ~READABLE)

    def _write(self, data: memoryview | bytes) -> None:
        """Hand bytes to the kernel and queue the rest; the memory is only lent."""
        if not self._queued:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._break(error)
                return
            if sent == len(data):
                return
        else:
            sent = 0
        if self.closed:
            return
        rest = memoryview(bytes(data[sent:]))
        if self._queue is None:
            self._queue = deque()
        self._queue.append(rest)
        self._queued += len(rest)
        self._want(self._events | WRITABLE)
        if self._queued > self._high and not self.congested:
            self.congested = True
            self._congested()

    def _write_end(self) -> None:
        """Send FIN behind what is queued."""
        if self._queued:
            self._end_due = True
        elif self._sock is not None and not self.closed:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._break(error)

    def _finish(self) -> None:
        """Send what is queued, then close; nothing more is read."""
        if self.closed:
            return
        self._finishing = True
        if self._queued:
            self._want(WRITABLE)
            self._expect_progress()
        else:
            self._finished()

    def _finished(self) -> None:
        """What was queued is with the kernel: close."""
        self._end(None)

    def _expect_progress(self) -> None:
        """Give a peer that has to take the rest ``UNREAD_SECONDS`` for each step; nobody else looks after it."""
        self._poller.loop.call_later(UNREAD_SECONDS, self._look_for_progress, self._queued)

    def _look_for_progress(self, queued: int) -> None:
        if self.closed:
            return
        if self._queued < queued:
            self._expect_progress()
        else:
            self._reset(Unread(f"none of {self._queued} in {UNREAD_SECONDS:g} s"))

    def _end(self, error: Exception | None) -> None:
        """Close now; what is queued is lost."""
        if self.closed:
            return
        self.closed = True
        if self._watched:
            self._poller.forget(self._fd)
        if self._sock is not None:
            self._sock.close()
        self._queue = None
        self._queued = 0
        self._gone(error)

    def _reset(self, error: Exception | None = None) -> None:
        """Close now with RST, so that the peer can tell it from an orderly end."""
        if self._sock is not None and not self.closed:
            with contextlib.suppress(OSError):  # already disconnected
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._end(error)

    def _break(self, error: OSError) -> None:
        """The kernel says that the connection is broken."""
        self._end(error)

    def _hand_over(self) -> socket.SocketType:
        """Give the socket to somebody else."""
        sock = self.sock
        if self._watched:
            self._poller.ignore(self._fd)
        self.closed = True
        self._sock = None
        return sock

    # -- from the poller -------------------------------------------------------------------------------------

    def _tell(self, events: int) -> None:
        wanted = self._events
        try:
            if events & READABLE & wanted:
                self._read()
            if events & WRITABLE & wanted and not self.closed:
                self._drain()
            if events & BROKEN and not wanted & (READABLE | WRITABLE) and not self.closed:
                self._broken()
        except Exception as error:
            self._reset(error)
            raise  # to the loop, which reports it

    def _read(self) -> None:
        try:
            size = self._recv_into(self._space())
        except BlockingIOError:
            return
        except OSError as error:
            self._break(error)
            return
        if size:
            self._received(size)
        else:
            self._read_end()

    def _read_end(self) -> None:
        self._read_over = True
        self._pause()
        self._ended()

    def _drain(self) -> None:
        queue = self._queue
        while queue:
            chunk = queue[0]
            try:
                sent = self._send(chunk)
            except BlockingIOError:
                break
            except OSError as error:
                self._break(error)
                return
            self._queued -= sent
            if sent < len(chunk):
                queue[0] = chunk[sent:]
                break
            queue.popleft()
        if not self._queued:
            self._want(self._events & ~WRITABLE)
            if self._finishing:
                self._finished()
                return
            if self._end_due:
                self._end_due = False
                self._write_end()
        if self.congested and self._queued <= self._low and not self.closed:
            self.congested = False
            self._relaxed()

    def _broken(self) -> None:
        """An error or the end of both directions, while nobody reads or writes."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._read_over else 0
        if number:
            self._break(OSError(number, os.strerror(number)))
        else:
            # it would be reported for ever; who reads on gets what came before the error, then the error
            self._watched = False
            self._poller.ignore(self._fd)

    def _want(self, events: int) -> None:
        if events == self._events and self._watched:
            return
        self._events = events
        if self._watched:
            self._poller.change(self._fd, events)
        elif events:
            self._watched = True
            self._poller.watch(self._fd, events, self._tell)
