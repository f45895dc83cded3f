"""Two tunnel streams joined: what one peer sends last reaches the other, whatever the order of events."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from tests.ztun.hbone.rig import OK, Bench, of, resets
from ztun.errors import ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.net.relay import Relay

pytestmark = pytest.mark.unit

WINDOW = 10  # what the onward peer takes before it has to grant more
PAYLOAD = b"more than the window"


class Joined:
    """A stream of a tunnel that was accepted, joined to one of a tunnel that was dialled."""

    def __init__(self) -> None:
        self.accepted = Bench()
        self.dialled = Bench(client=True, peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: WINDOW})
        self.ends: list[ZtunError | None] = []
        self.client = self.accepted.request(1)
        self.server, _ = self.dialled.open()
        self.dialled.feed(self.dialled.headers(1, OK))
        self.accepted.tunnel.respond(self.client, OK, end_stream=False)
        self.relay = Relay(self.client, self.server, self.ends.append)
        self.relay.start()
        self.accepted.sent()
        self.dialled.sent()

    def arrived(self) -> bytes:
        """Payload that was sent onward since the last call."""
        return b"".join(frame.data for frame in of(DataFrame, self.dialled.sent()))

    def grant(self) -> None:
        self.dialled.feed(WindowUpdateFrame(1, window_increment=100))


@pytest.fixture
def joined() -> Joined:
    return Joined()


def test_what_waits_behind_an_end_is_held_only_until_it_is_sent(joined: Joined) -> None:
    joined.accepted.feed(DataFrame(1, PAYLOAD, flags=["END_STREAM"]))
    assert joined.client.held == joined.accepted.tunnel.held == len(PAYLOAD)
    assert joined.arrived() == PAYLOAD[:WINDOW]
    joined.grant()
    assert joined.arrived() == PAYLOAD[WINDOW:]
    # the other direction may stay open for days: its tunnel must have its credit back
    assert joined.client.held == joined.accepted.tunnel.held == 0
    assert joined.ends == []


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL])
def test_a_peer_that_ends_and_reads_no_more_is_still_heard(joined: Joined, code: ErrorCode) -> None:
    joined.accepted.feed(DataFrame(1, PAYLOAD, flags=["END_STREAM"]), RstStreamFrame(1, error_code=code))
    assert joined.arrived() == PAYLOAD[:WINDOW]
    assert joined.ends == []
    joined.dialled.feed(DataFrame(1, b"nobody reads this"))
    joined.grant()
    rest = joined.dialled.sent()
    assert b"".join(frame.data for frame in of(DataFrame, rest)) == PAYLOAD[WINDOW:]
    assert "END_STREAM" in of(DataFrame, rest)[-1].flags
    assert resets(rest) == [(1, ErrorCode.NO_ERROR)]
    assert joined.ends == [None]
    assert not joined.dialled.tunnel.streams
    assert joined.accepted.tunnel.held == joined.dialled.tunnel.held == 0


def test_when_nothing_waits_such_an_end_is_passed_on_at_once(joined: Joined) -> None:
    joined.accepted.feed(DataFrame(1, b"bye", flags=["END_STREAM"]), RstStreamFrame(1))
    sent = joined.dialled.sent()
    assert [frame.data for frame in of(DataFrame, sent)] == [b"bye", b""]
    assert resets(sent) == [(1, ErrorCode.NO_ERROR)]
    assert joined.ends == [None]


def test_the_onward_peer_may_end_before_it_has_taken_the_rest(joined: Joined) -> None:
    joined.accepted.feed(DataFrame(1, PAYLOAD, flags=["END_STREAM"]), RstStreamFrame(1))
    joined.dialled.feed(DataFrame(1, flags=["END_STREAM"]))
    assert joined.ends == []
    joined.dialled.sent()
    joined.grant()
    assert joined.arrived() == PAYLOAD[WINDOW:]
    assert joined.ends == [None]
    assert not joined.dialled.tunnel.streams


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CONNECT_ERROR])
def test_the_onward_peer_may_refuse_the_rest(joined: Joined, code: ErrorCode) -> None:
    joined.accepted.feed(DataFrame(1, PAYLOAD, flags=["END_STREAM"]), RstStreamFrame(1))
    joined.dialled.feed(RstStreamFrame(1, error_code=code))
    (end,) = joined.ends
    assert (end is None) is (code == ErrorCode.NO_ERROR)
    assert joined.accepted.tunnel.held == 0
    assert not joined.dialled.tunnel.waiting


def test_a_reset_in_the_middle_does_not_wait(joined: Joined) -> None:
    joined.accepted.feed(DataFrame(1, PAYLOAD), RstStreamFrame(1, error_code=ErrorCode.CANCEL))
    assert resets(joined.dialled.sent()) == [(1, ErrorCode.CONNECT_ERROR)]
    (end,) = joined.ends
    assert end is not None
    assert end.code == "stream_reset"
    assert joined.accepted.tunnel.held == 0


def test_the_connection_can_be_cut_while_the_rest_waits(joined: Joined) -> None:
    joined.accepted.feed(DataFrame(1, PAYLOAD, flags=["END_STREAM"]), RstStreamFrame(1))
    cut = ZtunError("cut", "a reason")
    joined.relay.cut(cut)
    assert joined.ends == [cut]
    joined.grant()
    assert joined.ends == [cut]
    assert not joined.dialled.tunnel.waiting


def test_payload_that_came_before_the_join_is_delivered_and_credited() -> None:
    accepted, dialled = Bench(), Bench(client=True, peer_settings={SettingsFrame.INITIAL_WINDOW_SIZE: WINDOW})
    client = accepted.request(1)
    accepted.feed(DataFrame(1, PAYLOAD, flags=["END_STREAM"]))
    server, _ = dialled.open()
    dialled.feed(dialled.headers(1, OK))
    dialled.sent()
    accepted.tunnel.respond(client, OK, end_stream=False)
    Relay(client, server, lambda _: None).start()
    assert b"".join(frame.data for frame in of(DataFrame, dialled.sent())) == PAYLOAD[:WINDOW]
    assert accepted.tunnel.held == len(PAYLOAD)
    dialled.feed(WindowUpdateFrame(1, window_increment=100))
    sent = of(DataFrame, dialled.sent())
    assert b"".join(frame.data for frame in sent) == PAYLOAD[WINDOW:]
    assert "END_STREAM" in sent[-1].flags
    assert accepted.tunnel.held == 0
