"""ztun's outbound side against Envoy as CONNECT terminator."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.peers import traffic
from tests.peers.application import GREETING
from tests.peers.link import Ground, Link
from tests.peers.pattern import Tally, pattern

pytestmark = pytest.mark.peer

SIZE = 64 * 1024**2
STREAMS_BEFORE_GOAWAY = 3


@pytest.fixture
def short_lived(ground: Ground) -> Iterator[Link]:
    """The Envoy sends GOAWAY after a few streams of each tunnel."""
    with ground.outbound(requests_per_connection=STREAMS_BEFORE_GOAWAY) as link:
        yield link


@pytest.fixture
def own_outbound(ground: Ground) -> Iterator[Link]:
    """A link of its own, for a test that ends the proxy."""
    with ground.outbound() as link:
        yield link


def records(link: Link, count: int) -> list[dict[str, Any]]:
    """The CONNECT streams that Envoy has logged, once there are ``count`` of them."""

    def lines() -> list[str]:
        return link.records.read_text().splitlines() if link.records.exists() else []

    link.envoy.wait_until(lambda: len(lines()) >= count, f"logging {count} streams")
    return [json.loads(line) for line in lines()]


def test_what_the_connect_request_says(outbound: Link) -> None:
    seen = len(outbound.records.read_text().splitlines()) if outbound.records.exists() else 0
    with traffic.dial(outbound.command) as connection:
        local = connection.getsockname()
        connection.sendall(b"echo\nhello")
        assert traffic.read_exactly(connection, 5) == b"hello"
    record = records(outbound, seen + 1)[-1]
    assert record["method"] == "CONNECT"
    assert record["authority"] == f"{outbound.server.ip}:9000"
    assert record["path"] is None
    assert record["user_agent"] is None
    assert record["forwarded"] in {f'for="{local[0]}:{local[1]}"', f'for="{outbound.client.ip}:{local[1]}"'}
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", record["traceparent"])
    baggage = dict(part.split("=", 1) for part in record["baggage"].split(","))
    assert baggage["k8s.namespace.name"] == "default"
    assert baggage["k8s.pod.name"] == "client"
    assert baggage["service.name"] == "client"
    assert record["tls"] == "TLSv1.3"
    assert record["sni"] is None
    assert record["peer"] == str(outbound.client.identity)


def test_traceparent_differs_from_connection_to_connection(outbound: Link) -> None:
    seen = len(outbound.records.read_text().splitlines()) if outbound.records.exists() else 0
    for _ in range(3):
        assert traffic.echo(outbound.command, b"x") == b"x"
    fresh = records(outbound, seen + 3)[-3:]
    assert len({record["traceparent"] for record in fresh}) == 3


def test_connections_share_a_tunnel(outbound: Link) -> None:
    before = outbound.envoy.stat("http.inbound.downstream_cx_total")
    with traffic.OpenEchoes() as echoes:
        echoes.open(outbound.command, 50)
        assert outbound.envoy.stat("http.inbound.downstream_rq_active") >= 50
    assert outbound.envoy.stat("http.inbound.downstream_cx_total") - before <= 1


def test_a_reset_by_the_client_resets_the_stream(outbound: Link) -> None:
    before = outbound.envoy.stat("http.inbound.downstream_rq_rx_reset")
    token = traffic.new_token()
    connection = traffic.dial(outbound.command)
    connection.sendall(f"watch {token}\n".encode())
    outbound.envoy.wait_until(
        lambda: outbound.envoy.stat("http.inbound.downstream_rq_active") == 1, "carrying the stream"
    )
    traffic.abort(connection)
    outbound.application.outcome(token)  # Envoy itself turns the reset into FIN towards the application
    outbound.envoy.wait_until(
        lambda: outbound.envoy.stat("http.inbound.downstream_rq_rx_reset") == before + 1, "seeing RST_STREAM"
    )


def test_a_reset_by_the_server_reaches_the_client(outbound: Link) -> None:
    with traffic.dial(outbound.command) as connection:
        connection.sendall(b"reset\n")
        assert traffic.read_exactly(connection, 4) == b"now\n"
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_envoy_gives_up_the_stream_of_an_application_that_ends_first(outbound: Link) -> None:
    """The client has every byte and the end. That Envoy then resets is its own limit (envoy#47378 would lift it)."""
    before = outbound.envoy.stat("http2.tx_reset")
    token = traffic.new_token()
    with traffic.dial(outbound.command) as connection:
        connection.sendall(f"linger {token}\n".encode())
        assert traffic.read_all(connection) == b"bye\n"
        # although the client's direction is still open
        assert outbound.application.outcome(token)[:2] == ["eof", "0"]
    assert outbound.envoy.stat("http2.tx_reset") == before + 1


def test_goaway_in_mid_transfer(short_lived: Link) -> None:
    link = short_lived
    with traffic.dial(link.command) as connection:
        connection.sendall(b"sink\n")
        pieces = pattern(9, SIZE)
        connection.sendall(next(pieces))
        # Each of these is a new stream; the limit is reached more than once while the transfer is open.
        for _ in range(3 * STREAMS_BEFORE_GOAWAY):
            assert traffic.echo(link.command, b"during") == b"during"
        assert link.envoy.stat("http.inbound.downstream_cx_max_requests_reached") >= 1
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        assert traffic.read_all(connection).decode().strip() == str(Tally.of_pattern(9, SIZE))


def test_the_drain_on_sigterm_lets_a_transfer_complete(own_outbound: Link) -> None:
    link = own_outbound
    with traffic.dial(link.greet) as connection:
        assert traffic.read_exactly(connection, len(GREETING)) == GREETING
        link.node.signal(signal.SIGTERM)
        link.node.wait_until(lambda: "draining" in link.node.log_tail(), "draining")
        assert traffic.exchange(connection, 7, SIZE) == str(Tally.of_pattern(7, SIZE))
    assert link.node.wait() == 0


def test_no_connection_is_lost_when_tunnels_live_short(short_lived: Link) -> None:
    answers = traffic.at_once(40, lambda index: traffic.echo(short_lived.command, b"%d" % index))
    assert answers == [b"%d" % index for index in range(40)]
