"""Who a tunnel talks to: where its bytes go, and who hears of what happens to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ztun.hbone.guard import Abuse
    from ztun.hbone.headers import Headers
    from ztun.hbone.stream import TunnelStream


class Output(Protocol):
    """Where the bytes of a tunnel go. The order of calls is the order on the wire."""

    def append(self, chunk: bytes) -> None:
        """Send ``chunk`` at the end of this tick, together with what else comes until then."""

    def write_through(self, frame: memoryview) -> None:
        """Send what was appended and then ``frame`` before returning; its memory is only lent."""

    def close(self) -> None:
        """Send what was appended and close."""


class ConnectionOwner(Protocol):
    """Whoever answers for a tunnel."""

    def request_received(self, stream: TunnelStream, headers: Headers) -> None:
        """A CONNECT request (server side). Answer with ``respond``, later call ``release_slot`` once."""

    def settings_received(self) -> None:
        """The peer's SETTINGS are in force; called again when they change."""

    def stream_closed(self) -> None:
        """A stream is gone, so there may be room for another."""

    def goaway_received(self, code: int, debug: bytes) -> None:
        """The peer takes no more streams on this connection."""

    def guard_tripped(self, abuse: Abuse, message: str) -> None:
        """The peer spent a flood budget; ``connection_closed`` follows."""

    def connection_closed(self, code: int, reason: str) -> None:
        """The tunnel is over; every stream was told before."""
