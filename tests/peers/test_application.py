"""The tools themselves, without a proxy: a test that uses them must be able to fail for the right reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import traffic
from tests.peers.addresses import AddressBlock
from tests.peers.application import GREETING
from tests.peers.pattern import PERIOD_BYTES, Tally, pattern
from tests.peers.process import Process, ProcessError
from tests.peers.traffic import Address, ApplicationProcess

pytestmark = pytest.mark.net

SIZE = 3 * 1024**2 + 1


@pytest.fixture(scope="module")
def address() -> Address:
    return AddressBlock(offset=2).take(), 9000


@pytest.fixture(scope="module")
def application(address: Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApplicationProcess]:
    log = tmp_path_factory.mktemp("application") / "log"
    with ApplicationProcess([address], log, greet=[(address[0], 9001)]) as application:
        yield application


def test_the_pattern_depends_on_the_seed_and_does_not_repeat_at_a_power_of_two() -> None:
    whole = b"".join(pattern(1, PERIOD_BYTES + 10))
    assert len(whole) == PERIOD_BYTES + 10
    assert whole[:10] == whole[-10:]
    assert whole[: 1 << 19] != whole[1 << 19 : 1 << 20]
    assert str(Tally.of_pattern(1, SIZE)) != str(Tally.of_pattern(2, SIZE))


def test_a_changed_byte_changes_the_tally() -> None:
    right, wrong = Tally(), Tally()
    right.add(b"abcd")
    wrong.add(b"abxd")
    assert str(right) != str(wrong)


@pytest.mark.usefixtures("application")
def test_bulk_both_ways(address: Address) -> None:
    assert traffic.upload(address, 1, SIZE) == str(Tally.of_pattern(1, SIZE))
    assert traffic.download(address, 2, SIZE) == str(Tally.of_pattern(2, SIZE))
    assert traffic.download_to_end(address, 3, SIZE) == str(Tally.of_pattern(3, SIZE))


@pytest.mark.usefixtures("application")
def test_echo_and_many_connections(address: Address) -> None:
    payload = os.urandom(SIZE)
    assert traffic.echo(address, payload) == payload
    assert traffic.at_once(50, lambda index: traffic.echo(address, b"%d" % index))[49] == b"49"
    with traffic.OpenEchoes() as echoes:
        echoes.open(address, 200)
        echoes.check()


@pytest.mark.usefixtures("application")
def test_the_greeting_comes_unasked(address: Address) -> None:
    with traffic.dial((address[0], 9001)) as connection:
        assert traffic.read_exactly(connection, len(GREETING)) == GREETING


def test_an_orderly_end_is_told_from_a_reset(application: ApplicationProcess, address: Address) -> None:
    token = traffic.new_token()
    with traffic.dial(address) as connection:
        connection.sendall(f"linger {token}\n".encode())
        assert traffic.read_all(connection) == b"bye\n"
        connection.sendall(b"more")
    assert application.outcome(token)[:2] == ["eof", "4"]
    token = traffic.new_token()
    connection = traffic.dial(address)
    connection.sendall(f"watch {token}\nhello".encode())
    traffic.abort(connection)
    assert application.outcome(token)[0] == "reset"


@pytest.mark.usefixtures("application")
def test_the_application_can_reset(address: Address) -> None:
    with traffic.dial(address) as connection:
        connection.sendall(b"reset\n")
        assert traffic.read_exactly(connection, 4) == b"now\n"
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_child_that_ends_early_says_why(tmp_path: Path) -> None:
    child = Process("child", ["sh", "-c", "echo out of luck; exit 3"], tmp_path / "log", ready=lambda: False)
    with pytest.raises(ProcessError, match=r"(?s)ended with 3.*out of luck"):
        child.start()
