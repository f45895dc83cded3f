"""The ``h2`` package as an independent peer, in both roles."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from tests.ztun.hbone.rig import CONNECT, OK, REFUSED, Answerer, Tray, Wire
from ztun.hbone.connection import TunnelConnection
from ztun.hbone.guard import GuardLimits
from ztun.hbone.holdings import Holdings
from ztun.hbone.settings import TunnelSettings
from ztun.hbone.wire import ErrorCode

pytestmark = pytest.mark.unit


class Opposite:
    """A tunnel connection whose peer is an ``H2Connection``."""

    def __init__(self, *, client: bool, settings: TunnelSettings | None = None) -> None:
        self.wire, self.owner = Wire(), Answerer()
        self.now = 0.0
        self.peer = H2Connection(H2Configuration(client_side=not client, header_encoding=None))
        self.events: list[Event] = []
        self.tunnel = TunnelConnection(
            self.wire,
            self.owner,
            client=client,
            now=0.0,
            settings=settings or TunnelSettings(),
            limits=GuardLimits(),
            holdings=Holdings(),
        )
        self.peer.initiate_connection()
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes until nothing moves; the peer acknowledges all payload."""
        while True:
            to_us, to_peer = self.peer.data_to_send(), self.wire.take()
            if not to_us and not to_peer:
                return
            self.now += 0.01
            if to_us:
                self.tunnel.receive(memoryview(to_us), self.now)
            for event in self.peer.receive_data(to_peer) if to_peer else []:
                self.events.append(event)
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    assert event.stream_id is not None
                    self.peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if type(event) is kind]

    def payload(self, stream_id: int) -> bytes:
        return b"".join(
            event.data or b""
            for event in self.events
            if isinstance(event, DataReceived) and event.stream_id == stream_id
        )

    def send(self, stream_id: int, data: bytes) -> None:
        """Send from the peer within its windows."""
        while data:
            room = min(
                self.peer.local_flow_control_window(stream_id), self.peer.max_outbound_frame_size, len(data)
            )
            assert room > 0, "the peer has no window left"
            self.peer.send_data(stream_id, data[:room])
            data = data[room:]
            self.exchange()

    def request(self, stream_id: int) -> Tray:
        """A CONNECT of the peer, answered with 200."""
        self.peer.send_headers(stream_id, list(CONNECT))
        self.exchange()
        stream, headers = self.owner.requests[-1]
        assert list(headers) == list(CONNECT)
        tray = Tray()
        self.tunnel.respond(stream, OK, end_stream=False)
        stream.owner = tray
        stream.attach(tray, tray)
        self.exchange()
        return tray


PATTERN = bytes(index % 251 for index in range(300_000))


def test_h2_as_client_sends_and_gets_a_lot() -> None:
    pair = Opposite(client=False)
    tray = pair.request(1)
    stream = pair.tunnel.streams[1]
    pair.send(1, PATTERN * 30)
    assert tray.taken == PATTERN * 30
    pair.peer.end_stream(1)
    pair.exchange()
    assert tray.ended
    stream.offer(memoryview(PATTERN * 30))
    stream.offer_end()
    pair.exchange()
    assert pair.payload(1) == PATTERN * 30
    assert len(pair.of(StreamEnded)) == 1
    assert tray.closed == 1


def test_h2_as_server_sends_and_gets_a_lot() -> None:
    pair = Opposite(client=True)
    tray = Tray()
    stream = pair.tunnel.open_stream([*CONNECT, (b"baggage", b"k8s.namespace.name=a")], tray)
    pair.exchange()
    (request,) = pair.of(RequestReceived)
    assert isinstance(request, RequestReceived)
    assert request.headers == [*CONNECT, (b"baggage", b"k8s.namespace.name=a")]
    pair.peer.send_headers(stream.id, [*OK, (b"baggage", b"service.name=b")])
    pair.exchange()
    assert tray.answers == [[*OK, (b"baggage", b"service.name=b")]]
    stream.attach(tray, tray)
    stream.offer(memoryview(PATTERN * 30))
    pair.exchange()
    assert pair.payload(stream.id) == PATTERN * 30
    pair.send(stream.id, PATTERN * 30)
    assert tray.taken == PATTERN * 30
    stream.offer_end()
    pair.peer.end_stream(stream.id)
    pair.exchange()
    assert tray.closed == 1


def test_many_streams_one_after_the_other() -> None:
    pair = Opposite(client=False)
    for number in range(300):
        stream_id = 2 * number + 1
        tray = pair.request(stream_id)
        stream = pair.tunnel.streams[stream_id]
        pair.peer.send_data(stream_id, b"ping", end_stream=True)
        pair.exchange()
        stream.offer(memoryview(b"pong"))
        stream.offer_end()
        pair.exchange()
        assert (tray.taken, pair.payload(stream_id)) == (b"ping", b"pong")
        pair.tunnel.release_slot()
    assert not pair.owner.trips
    assert not pair.tunnel.streams


def test_a_refusal_and_a_reset_are_understood() -> None:
    pair = Opposite(client=False)
    pair.peer.send_headers(1, list(CONNECT))
    pair.exchange()
    pair.tunnel.respond(pair.owner.requests[0][0], REFUSED, end_stream=True)
    pair.exchange()
    (answer,) = pair.of(ResponseReceived)
    assert isinstance(answer, ResponseReceived)
    assert answer.headers == list(REFUSED)
    tray = pair.request(3)
    pair.tunnel.streams[3].abort(ErrorCode.CONNECT_ERROR)
    pair.exchange()
    codes = [event.error_code for event in pair.events if isinstance(event, StreamReset)]
    assert codes == [ErrorCodes.NO_ERROR, ErrorCodes.CONNECT_ERROR]
    assert not tray.over
    tray = pair.request(5)
    pair.peer.reset_stream(5, ErrorCodes.CANCEL)
    pair.exchange()
    assert tray.resets[0][0] == ErrorCode.CANCEL


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_pings_go_both_ways(client: bool) -> None:
    pair = Opposite(client=client)
    pair.peer.ping(b"fromthem")
    pair.exchange()
    pair.now += 11.0
    pair.tunnel.tick(pair.now)
    pair.exchange()
    (ping,) = pair.of(PingReceived)
    assert isinstance(ping, PingReceived)
    for _ in range(25):
        pair.now += 1.0
        pair.tunnel.tick(pair.now)
        pair.exchange()
    assert not pair.tunnel.closed


def test_the_end_is_told_with_its_reason() -> None:
    pair = Opposite(client=False)
    tray = pair.request(1)
    pair.tunnel.terminate(ErrorCode.ENHANCE_YOUR_CALM, "too much")
    pair.exchange()
    (end,) = pair.of(ConnectionTerminated)
    assert isinstance(end, ConnectionTerminated)
    assert (end.error_code, end.last_stream_id) == (ErrorCodes.ENHANCE_YOUR_CALM, 1)
    assert end.additional_data == b"too much"
    assert tray.resets


def test_new_settings_of_h2_are_followed() -> None:
    pair = Opposite(client=True)
    tray = Tray()
    stream = pair.tunnel.open_stream(CONNECT, tray)
    pair.exchange()
    pair.peer.send_headers(stream.id, list(OK))
    pair.exchange()
    stream.attach(tray, tray)
    pair.peer.update_settings({4: 1_000, 5: 20_000, 3: 1})
    pair.exchange()
    assert pair.tunnel.free_streams == 0
    stream.offer(memoryview(PATTERN))
    pair.exchange()
    assert pair.payload(stream.id) == PATTERN
    assert max(len(event.data or b"") for event in pair.events if isinstance(event, DataReceived)) <= 20_000
