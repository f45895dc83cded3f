"""What must hold whichever end is the Envoy: every byte, half-close, many streams, who speaks first."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.peers import traffic
from tests.peers.application import GREETING
from tests.peers.link import Link
from tests.peers.pattern import Tally

pytestmark = pytest.mark.peer

GIBIBYTE = 1024**3
MEBIBYTE = 1024**2
STREAMS = 500


def test_one_gibibyte_up_is_byte_exact(link: Link) -> None:
    assert traffic.upload(link.command, 1, GIBIBYTE) == str(Tally.of_pattern(1, GIBIBYTE))


def test_one_gibibyte_down_is_byte_exact(link: Link) -> None:
    assert traffic.download(link.command, 2, GIBIBYTE) == str(Tally.of_pattern(2, GIBIBYTE))


def test_both_directions_of_several_connections_at_once(link: Link) -> None:
    size = 32 * MEBIBYTE
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(traffic.upload, link.command, seed, size) for seed in range(4)]
        received = [pool.submit(traffic.download, link.command, seed, size) for seed in range(4, 8)]
    results = [future.result() for future in sent + received]
    assert results == [str(Tally.of_pattern(seed, size)) for seed in range(8)]


def test_client_first_half_close_keeps_the_answer_flowing(link: Link) -> None:
    payload = os.urandom(8 * MEBIBYTE)
    assert traffic.echo(link.command, payload) == payload


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 65535, 65536, MEBIBYTE + 1])
def test_sizes_around_frame_and_window_limits(link: Link, size: int) -> None:
    payload = os.urandom(size)
    assert traffic.echo(link.command, payload) == payload


def test_a_server_that_speaks_first_is_heard_before_the_client_says_anything(link: Link) -> None:
    with traffic.dial(link.greet) as connection:
        assert traffic.read_exactly(connection, len(GREETING)) == GREETING
        connection.sendall(b"hello")
        assert traffic.read_exactly(connection, 5) == b"hello"


def test_a_server_that_greets_and_leaves_is_heard(link: Link) -> None:
    """Answer, payload and end may come in one read, before the client's side is joined to the stream."""
    for _ in range(100):
        with traffic.dial(link.farewell) as connection:
            assert traffic.read_all(connection) == GREETING


def test_five_hundred_streams_at_once(link: Link) -> None:
    payloads = [os.urandom(1 + 257 * index) for index in range(STREAMS)]
    answers = traffic.at_once(STREAMS, lambda index: traffic.echo(link.command, payloads[index]))
    wrong = [index for index in range(STREAMS) if answers[index] != payloads[index]]
    assert wrong == []


def test_five_hundred_connections_stay_open_and_usable(link: Link) -> None:
    with traffic.OpenEchoes() as echoes:
        echoes.open(link.command, STREAMS)
        for _ in range(3):
            echoes.check()


def test_a_connection_that_sends_nothing_and_ends_does_no_harm(link: Link) -> None:
    for _ in range(20):
        traffic.dial(link.command).close()
    assert traffic.echo(link.command, b"after") == b"after"


def test_the_server_ends_first(link: Link) -> None:
    with traffic.dial(link.command) as connection:
        connection.sendall(f"linger {traffic.new_token()}\n".encode())
        assert traffic.read_all(connection) == b"bye\n"
