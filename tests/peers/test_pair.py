"""The control: two Envoys alone. What passes here and fails with ztun on one end is ztun's doing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from tests.peers import traffic
from tests.peers.addresses import AddressBlock
from tests.peers.application import GREETING
from tests.peers.credentials import ThrowAwayAuthority
from tests.peers.envoy import EnvoyProcess, envoy_binary
from tests.peers.envoy_parts import Terminator, TunnelEntry
from tests.peers.pattern import Tally
from tests.peers.traffic import Address, ApplicationProcess

pytestmark = pytest.mark.peer

MEBIBYTE = 1024 * 1024
CLIENT = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "client")
SERVER = SpiffeId(DEFAULT_TRUST_DOMAIN, "default", "server")


@dataclass(frozen=True, slots=True)
class Pair:
    source: EnvoyProcess
    destination: EnvoyProcess
    command: Address
    greet: Address
    farewell: Address
    refused: Address


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    try:
        envoy_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("pair")
    yield from _started(directory)


def _started(directory: Path) -> Iterator[Pair]:
    authority, block = ThrowAwayAuthority(directory), AddressBlock()
    pod, entry = block.take(), block.take()
    client, server = authority.issue(CLIENT), authority.issue(SERVER)
    inbound = Terminator(
        "inbound",
        (pod, 15008),
        server,
        {f"{pod}:{port}": (pod, port) for port in (9000, 9001, 9002)},
        expected=[CLIENT],
    )
    outbound = [
        TunnelEntry("command", (entry, 0), f"{pod}:9000", (pod, 15008), client, SERVER),
        TunnelEntry("greet", (entry, 0), f"{pod}:9001", (pod, 15008), client, SERVER),
        TunnelEntry("farewell", (entry, 0), f"{pod}:9002", (pod, 15008), client, SERVER),
        # Certificate and expectation of the wrong identity: nothing may pass.
        TunnelEntry("refused", (entry, 0), f"{pod}:9000", (pod, 15008), server, CLIENT),
    ]
    with (
        ApplicationProcess([(pod, 9000)], directory / "app.log", greet=[(pod, 9001)], farewell=[(pod, 9002)]),
        EnvoyProcess("destination", [inbound], directory) as destination,
        EnvoyProcess("source", outbound, directory) as source,
    ):
        listeners = [source.listener(name) for name in ("command", "greet", "farewell", "refused")]
        yield Pair(source, destination, *listeners)


def test_bulk_up_is_byte_exact(pair: Pair) -> None:
    assert traffic.upload(pair.command, 1, 64 * MEBIBYTE) == str(Tally.of_pattern(1, 64 * MEBIBYTE))


def test_client_first_half_close_keeps_the_answer_flowing(pair: Pair) -> None:
    payload = os.urandom(3 * MEBIBYTE)
    assert traffic.echo(pair.command, payload) == payload


def test_a_server_that_speaks_first_is_heard(pair: Pair) -> None:
    with traffic.dial(pair.greet) as connection:
        assert traffic.read_exactly(connection, 11) == b"220 ready\r\n"


def test_a_server_that_greets_and_leaves_is_heard(pair: Pair) -> None:
    for _ in range(100):
        with traffic.dial(pair.farewell) as connection:
            assert traffic.read_all(connection) == GREETING


def test_connections_share_a_tunnel(pair: Pair) -> None:
    with traffic.OpenEchoes() as echoes:
        echoes.open(pair.command, 100)
        assert pair.destination.stat("http.inbound.downstream_cx_active") == 1


def test_a_wrong_identity_gets_no_byte_through(pair: Pair) -> None:
    with traffic.dial(pair.refused) as connection:
        connection.sendall(b"echo\n!")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert pair.source.stat("cluster.*ssl.fail_verify_san") > 0
