"""The ``ztun`` command as its users run it: as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ztun import __version__
from ztun.cli.echo import parse_ports

pytestmark = pytest.mark.net


def ztun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ztun", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def echo_server() -> Iterator[tuple[subprocess.Popen[str], list[tuple[str, int]]]]:
    """A running ``ztun echo`` on two free ports, with the addresses that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ztun", "echo", "--host", "127.0.0.1", "--port", "0,0", "--say", "hello"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    addresses = []
    for _ in range(2):
        host, _, port = process.stderr.readline().removeprefix("listening on ").strip().rpartition(":")
        addresses.append((host, int(port)))
    yield process, addresses
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stderr.close()


def ask(address: tuple[str, int], line: bytes) -> bytes:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_version_names_everything_that_touches_the_wire() -> None:
    result = ztun("version")
    assert result.returncode == 0, result.stderr
    printed = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert printed["ztun"].strip() == __version__
    assert printed["openssl (ssl)"].strip().startswith("OpenSSL ")
    assert printed["openssl (cryptography)"].strip().startswith("OpenSSL ")
    assert {"python", "h2", "uvloop"} <= set(printed)


def test_help_lists_the_commands_without_loading_the_data_path() -> None:
    program = (
        # certs.openssl loads the library of cryptography (7 ms) with its settings; the rest of it is the data path's
        "import sys; from ztun.cli import main; code = main(['--help']);"
        "heavy = {'uvloop', 'cryptography.x509', 'OpenSSL', 'h2', 'pydantic'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "echo" in result.stdout
    assert "version" in result.stdout


@pytest.mark.parametrize("program", ["ztun", "waypoint", "certs"])
def test_an_interrupt_while_it_is_loading_is_quiet(tmp_path: Path, program: str) -> None:
    """A module that is loaded late tells when it is time, and waits."""
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    slow = tmp_path / "typer"
    slow.mkdir()
    (slow / "__init__.py").write_text(
        f"import signal\nwith open({str(reached)!r}, 'w') as told: told.write('here')\nsignal.pause()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-m", program, "--help"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert reached.read_text() == "here"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (130, "")


PROXY = ("proxy", "--config", "mesh", "--node", "node-a", "--ca", "ca")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "No such command 'frob'"),
        (["echo", "--port", "http"], "'http' is not a port"),
        (["echo", "--port", "70000"], "'70000' is not a port"),
        (["proxy"], "Missing option '--config'"),
        ([*PROXY, "--log-level", "loud"], "--log-level: 'loud' is not a log level"),
        ([*PROXY, "--forward", "19000"], "expected [IP:]PORT=HOST:PORT@NAMESPACE/WORKLOAD"),
        ([*PROXY, "--mode", "sidecar"], "--mode sidecar needs --workload"),
        ([*PROXY, "--mode", "both"], "'both' is not one of"),
        (["demo", "--fabric", "cloud"], "'cloud' is not one of"),
    ],
)
def test_a_command_line_that_cannot_be_used_ends_with_2(arguments: list[str], message: str) -> None:
    result = ztun(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_proxy_without_configuration_says_so_and_ends_with_1(tmp_path: Path) -> None:
    result = ztun(
        "proxy", "--config", str(tmp_path / "mesh"), "--node", "node-a", "--ca", str(tmp_path / "ca")
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert f"{tmp_path}/mesh: cannot be read" in result.stderr
    assert "\nhint: " in result.stderr


def test_a_taken_port_is_one_sentence_and_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = ztun("echo", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint == "hint: another process listens there; stop it or choose another port"


def test_echo_answers_on_every_port(
    echo_server: tuple[subprocess.Popen[str], list[tuple[str, int]]],
) -> None:
    _, addresses = echo_server
    assert [ask(address, b"test\n") for address in addresses] == [b"hello test\n"] * 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_echo_ends_quietly_when_it_is_told_to(
    echo_server: tuple[subprocess.Popen[str], list[tuple[str, int]]], number: signal.Signals, code: int
) -> None:
    process, _ = echo_server
    os.kill(process.pid, number)
    assert process.wait(timeout=30) == code
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_ports_are_a_list() -> None:
    assert parse_ports("9000,9001") == (9000, 9001)
    with pytest.raises(typer.BadParameter, match="'-1' is not a port"):
        parse_ports("-1")
