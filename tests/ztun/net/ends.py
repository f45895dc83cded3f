"""One connection of an application, between a socket of ours and what it is joined to."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.ztun.proxy.applications import Wire
from ztun.net.app_socket import AppSocket


@dataclass
class Recorder:
    """The other side of a socket: takes ``space`` bytes, then asks to stop."""

    space: int = 1 << 30
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    aborted: int | None = None
    drained: int = 0
    closed: list[Exception | None] = field(default_factory=list)

    def room(self) -> int:
        return max(0, self.space - len(self.data))

    def offer(self, data: memoryview) -> bool:
        self.data += data
        return self.room() > 0

    def offer_end(self) -> None:
        self.ended = True

    def abort(self, code: int) -> None:
        self.aborted = code

    def sink_drained(self) -> None:
        self.drained += 1

    def socket_closed(self, sock: AppSocket, error: Exception | None) -> None:
        self.closed.append(error)


@dataclass
class Ends:
    """A connection: our socket, and the application's end."""

    ours: AppSocket
    theirs: Wire
    other: Recorder

    def start(self) -> None:
        self.ours.own(self.other)
        self.ours.start(self.other, self.other)
