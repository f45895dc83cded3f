"""A tunnel connection on a bench: raw frames in, parsed frames out, and everything it tells its owners kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from ztun.hbone.connection import TunnelConnection
from ztun.hbone.guard import Abuse, GuardLimits
from ztun.hbone.holdings import Holdings
from ztun.hbone.settings import TunnelSettings
from ztun.hbone.stream import TunnelStream
from ztun.hbone.wire import CLIENT_PREFACE, ErrorCode

Fields = Sequence[tuple[bytes, bytes]]

CONNECT: Fields = ((b":method", b"CONNECT"), (b":authority", b"10.0.0.5:9000"))
OK: Fields = ((b":status", b"200"),)
REFUSED: Fields = ((b":status", b"503"),)


class Wire:
    """The ``Output`` of a connection. It fails the test when something is sent after the end."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.closed = False

    def append(self, chunk: bytes) -> None:
        assert not self.closed, "bytes behind the end of the connection"
        self.sent += chunk

    def write_through(self, frame: memoryview) -> None:
        self.append(bytes(frame))

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        sent, self.sent = bytes(self.sent), bytearray()
        return sent


class Answerer:
    """A ``ConnectionOwner`` that keeps what it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[TunnelStream, Fields]] = []
        self.settings = 0
        self.streams_closed = 0
        self.goaways: list[tuple[int, bytes]] = []
        self.trips: list[tuple[Abuse, str]] = []
        self.ends: list[tuple[int, str]] = []

    def request_received(self, stream: TunnelStream, headers: Fields) -> None:
        assert not self.ends, "a request behind the end of the connection"
        self.requests.append((stream, headers))

    def settings_received(self) -> None:
        self.settings += 1

    def stream_closed(self) -> None:
        self.streams_closed += 1

    def goaway_received(self, code: int, debug: bytes) -> None:
        self.goaways.append((code, debug))

    def guard_tripped(self, abuse: Abuse, message: str) -> None:
        self.trips.append((abuse, message))

    def connection_closed(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))


class Tray:
    """Sink, source and owner of one stream: takes payload until it is ``full``, and keeps what it is told."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.full = False
        self.ended = False
        self.drained = 0
        self.answers: list[Fields] = []
        self.closed = 0
        self.resets: list[tuple[int, str]] = []

    def room(self) -> int:
        return 0 if self.full else 1 << 20

    def offer(self, data: memoryview) -> bool:
        assert not self.ended and not self.over, "payload behind the end of its stream"
        self.taken += data
        return not self.full

    def offer_end(self) -> None:
        assert not self.ended, "two ends of one stream"
        self.ended = True

    def abort(self, code: int) -> None:
        self.ended = True

    def sink_drained(self) -> None:
        self.drained += 1

    def stream_answered(self, stream: TunnelStream, headers: Fields) -> None:
        self.answers.append(headers)

    def stream_closed(self, stream: TunnelStream) -> None:
        assert not self.over, "two ends of one stream"
        self.closed += 1

    def stream_reset(self, stream: TunnelStream, code: int, reason: str) -> None:
        assert not self.over, "two ends of one stream"
        self.resets.append((code, reason))

    @property
    def over(self) -> bool:
        return bool(self.closed or self.resets)


class Bench:
    """One connection after the exchange of SETTINGS, with a peer made of raw frames."""

    def __init__(
        self,
        *,
        client: bool = False,
        settings: TunnelSettings | None = None,
        limits: GuardLimits | None = None,
        holdings: Holdings | None = None,
        peer_settings: dict[int, int] | None = None,
        greet: bool = True,
        acknowledge: bool = True,
    ) -> None:
        self.wire = Wire()
        self.owner = Answerer()
        self.now = 1000.0
        self.encoder = Encoder()
        self.encoder.header_table_size = 0 if acknowledge else 4096
        self.tunnel = TunnelConnection(
            self.wire,
            self.owner,
            client=client,
            now=self.now,
            settings=settings or TunnelSettings(),
            limits=limits or GuardLimits(),
            holdings=holdings or Holdings(),
        )
        if greet:
            if not client:
                self.feed_bytes(CLIENT_PREFACE)
            self.feed(SettingsFrame(0, settings=peer_settings or {}))
            if acknowledge:
                self.feed(SettingsFrame(0, flags=["ACK"]))
            assert not self.wire.closed
            self.wire.take()

    def feed_bytes(self, data: bytes) -> None:
        self.tunnel.receive(memoryview(data), self.now)

    def feed(self, *frames: Frame) -> None:
        self.feed_bytes(b"".join(frame.serialize() for frame in frames))

    def sent(self) -> list[Any]:
        """The frames that were sent since the last call."""
        return parse(self.wire.take())

    def headers(self, stream_id: int, fields: Fields, *, end_stream: bool = False) -> HeadersFrame:
        """One header block of the peer; must be fed in the order of the calls (HPACK)."""
        flags = ["END_HEADERS", "END_STREAM"] if end_stream else ["END_HEADERS"]
        return HeadersFrame(stream_id, data=self.encoder.encode(list(fields)), flags=flags)

    def request(self, stream_id: int, *, end_stream: bool = False) -> TunnelStream:
        """A CONNECT request of the peer, not yet answered."""
        self.feed(self.headers(stream_id, CONNECT, end_stream=end_stream))
        return self.owner.requests[-1][0]

    def accept(self, stream_id: int) -> tuple[TunnelStream, Tray]:
        """A CONNECT request of the peer, answered with 200 and joined to a tray."""
        stream = self.request(stream_id)
        return stream, self.join(stream)

    def join(self, stream: TunnelStream) -> Tray:
        tray = Tray()
        self.tunnel.respond(stream, OK, end_stream=False)
        stream.owner = tray
        stream.attach(tray, tray)
        return tray

    def open(self) -> tuple[TunnelStream, Tray]:
        """A CONNECT request of ours, not yet answered."""
        tray = Tray()
        return self.tunnel.open_stream(CONNECT, tray), tray

    def established(self) -> tuple[TunnelStream, Tray]:
        """A CONNECT request of ours, answered with 200 and joined to a tray."""
        stream, tray = self.open()
        self.feed(self.headers(stream.id, OK))
        stream.attach(tray, tray)
        return stream, tray

    # -- what a test asks at the end ---------------------------------------------------------------------------

    def assert_tripped(self, abuse: Abuse) -> None:
        """The guard has closed the connection and said why, to both sides."""
        assert [abuse for abuse, _ in self.owner.trips] == [abuse]
        self.assert_closed(ErrorCode.ENHANCE_YOUR_CALM)

    def assert_closed(self, code: ErrorCode, *, told: ErrorCode | None = None) -> GoAwayFrame:
        """The connection ended with GOAWAY of this code as its last frame, and nothing of it is left.

        ``told`` is what the owner heard, if it is another code.
        """
        last = self.sent()[-1]
        assert isinstance(last, GoAwayFrame)
        assert last.error_code == code
        assert [heard for heard, _ in self.owner.ends] == [told or code]
        assert self.tunnel.closed
        assert self.wire.closed
        assert not self.tunnel.streams
        assert not self.tunnel.waiting
        assert self.tunnel.free_streams == 0
        self.feed(RstStreamFrame(1))  # what still arrives is ignored
        return last

    def assert_healthy(self) -> None:
        """Nothing was held against the peer: it still gets a stream served."""
        assert self.owner.trips == []
        assert self.owner.ends == []
        assert not self.wire.closed
        if self.tunnel.client:
            stream, tray = self.established()
        else:
            highest = max((stream.id for stream, _ in self.owner.requests), default=-1)
            stream, tray = self.accept(highest + 2)
        self.feed(DataFrame(stream.id, b"still here"))
        assert tray.taken == b"still here"


def parse(data: bytes) -> list[Any]:
    """Whole frames, as hyperframe reads them."""
    frames = []
    view = memoryview(data)
    if data.startswith(CLIENT_PREFACE):
        view = view[len(CLIENT_PREFACE) :]
    while view:
        frame, length = Frame.parse_frame_header(view[:9])
        frame.parse_body(view[9 : 9 + length])
        frames.append(frame)
        view = view[9 + length :]
    return frames


def of(kind: type[Frame], frames: Iterable[Frame]) -> list[Any]:
    """The frames of one kind."""
    return [frame for frame in frames if type(frame) is kind]


def resets(frames: Iterable[Frame]) -> list[tuple[int, int]]:
    """(stream id, code) of every RST_STREAM."""
    return [(frame.stream_id, frame.error_code) for frame in of(RstStreamFrame, frames)]
