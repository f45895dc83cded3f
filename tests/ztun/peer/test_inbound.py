"""ztun's inbound side against Envoy's ``tunneling_config``."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.peers import traffic
from tests.peers.application import GREETING
from tests.peers.link import Ground, Link
from tests.peers.pattern import Tally, pattern

pytestmark = pytest.mark.peer

SIZE = 64 * 1024**2


@pytest.fixture
def own_inbound(ground: Ground) -> Iterator[Link]:
    """A link of its own, for a test that ends the proxy."""
    with ground.inbound() as link:
        yield link


def test_the_client_goes_on_after_the_server_has_ended(inbound: Link) -> None:
    token = traffic.new_token()
    with traffic.dial(inbound.command) as connection:
        connection.sendall(f"linger {token}\n".encode())
        assert traffic.read_all(connection) == b"bye\n"
        for piece in pattern(5, SIZE):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        assert inbound.application.outcome(token) == ["eof", *str(Tally.of_pattern(5, SIZE)).split()]


def test_a_server_that_ends_first_is_heard_to_its_last_byte(inbound: Link) -> None:
    assert traffic.download_to_end(inbound.command, 4, SIZE) == str(Tally.of_pattern(4, SIZE))


def test_a_reset_by_the_client_reaches_the_application(inbound: Link) -> None:
    token = traffic.new_token()
    connection = traffic.dial(inbound.command)
    connection.sendall(f"watch {token}\n".encode())
    inbound.envoy.wait_until(
        lambda: inbound.envoy.stat("cluster.*upstream_rq_active") == 1, "carrying the stream"
    )
    traffic.abort(connection)
    assert inbound.application.outcome(token)[0] == "reset"


def test_a_reset_by_the_server_resets_the_stream(inbound: Link) -> None:
    before = inbound.envoy.stat("cluster.*http2.rx_reset")
    with traffic.dial(inbound.command) as connection:
        connection.sendall(b"reset\n")
        assert traffic.read_exactly(connection, 4) == b"now\n"
        connection.sendall(b"x")
        # What Envoy makes of it for its own client is Envoy's: FIN or RST, but an end.
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert inbound.envoy.stat("cluster.*http2.rx_reset") == before + 1


def test_the_drain_on_sigterm_lets_a_transfer_complete(own_inbound: Link) -> None:
    link = own_inbound
    with traffic.dial(link.greet) as connection:
        assert traffic.read_exactly(connection, len(GREETING)) == GREETING
        link.node.signal(signal.SIGTERM)
        link.envoy.wait_until(
            lambda: link.envoy.stat("cluster.*upstream_cx_close_notify") == 1, "seeing GOAWAY"
        )
        assert traffic.exchange(connection, 6, SIZE) == str(Tally.of_pattern(6, SIZE))
    assert link.node.wait() == 0


def test_the_source_identity_is_in_the_access_log(inbound: Link) -> None:
    assert traffic.echo(inbound.command, b"x") == b"x"
    identity = str(inbound.client.identity)
    inbound.node.wait_until(lambda: identity in inbound.node.log_tail(), "logging the source identity")
