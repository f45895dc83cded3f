"""The control socket: questions and answers, and whatever else somebody may send to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ztun.agent.control import MAX_CLIENTS, MAX_LINE_BYTES, ControlSocket, ask
from ztun.errors import ConnectError, EnrolmentError

pytestmark = pytest.mark.net


async def handle(request: Mapping[str, Any]) -> dict[str, Any]:
    if request["command"] == "fail":
        raise EnrolmentError("some_code", "it failed", hint="try harder")
    if request["command"] == "break":
        raise OSError(28, "No space left on device")
    return {"heard": request["command"]}


@pytest_asyncio.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    control = ControlSocket(tmp_path / "control.sock", handle)
    await control.open()
    yield tmp_path / "control.sock"
    await control.close()
    assert not (tmp_path / "control.sock").exists()


async def asked(path: Path, request: Mapping[str, Any], **options: float) -> dict[str, Any]:
    return await asyncio.to_thread(lambda: ask(path, request, **options))


def hung_up_on(path: Path) -> bool:
    """Whether the agent ends a connection without an answer: before or after it was sent the question."""
    try:
        return sent(path, b'{"command": "hello"}\n') == b""
    except ConnectionError:
        return True


def sent(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        return answer


@pytest.mark.asyncio
async def test_a_question_has_an_answer(path: Path) -> None:
    assert await asked(path, {"command": "hello"}) == {"heard": "hello"}


@pytest.mark.asyncio
async def test_what_went_wrong_is_told_with_code_and_hint(path: Path) -> None:
    with pytest.raises(EnrolmentError, match="it failed") as raised:
        await asked(path, {"command": "fail"})
    assert (raised.value.code, raised.value.hint) == ("some_code", "try harder")
    with pytest.raises(EnrolmentError, match="No space left") as raised:
        await asked(path, {"command": "break"})
    assert raised.value.hint


@pytest.mark.asyncio
@pytest.mark.parametrize("line", [b"[]", b"7", b"{", b"", b"\xff\xfe", b'"x"', b"[" * 5000])
async def test_what_is_no_question_is_an_error_and_harms_nobody(path: Path, line: bytes) -> None:
    first, second = (
        json.loads(one)
        for one in (await asyncio.to_thread(sent, path, line + b'\n{"command": "hello"}\n')).splitlines()
    )
    assert (first["ok"], first["code"]) == (False, "bad_request")
    assert second == {"ok": True, "heard": "hello"}


@pytest.mark.asyncio
async def test_a_line_without_end_is_not_kept(path: Path) -> None:
    def flood() -> bytes:
        try:
            return sent(path, b"x" * (4 * MAX_LINE_BYTES))
        except OSError:  # hung up on before everything was sent
            return b""

    assert await asyncio.to_thread(flood) == b""
    assert await asked(path, {"command": "hello"})


@pytest.mark.asyncio
async def test_half_a_question_is_none(path: Path) -> None:
    assert await asyncio.to_thread(sent, path, b'{"command": "hello"}') == b""


@pytest.mark.asyncio
async def test_more_clients_than_allowed_are_hung_up_on(path: Path) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS)]
    try:
        for sock in silent:
            sock.connect(str(path))
            sock.sendall(b'{"command": "hello"}\n')
            assert await asyncio.to_thread(sock.recv, 100)
        assert await asyncio.to_thread(hung_up_on, path)
        silent.pop().close()
        while True:
            try:
                await asked(path, {"command": "hello"})
                break
            except ConnectError:  # not yet noticed
                continue
    finally:
        for sock in silent:
            sock.close()


def test_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ConnectError) as raised:
        ask(tmp_path / "none.sock", {"command": "hello"})
    assert raised.value.code == "no_agent"
    assert "ztun agent" in raised.value.hint


@pytest.mark.parametrize(
    ("answer", "code"), [(b"", "agent_ended"), (b"hello\n", "no_agent"), (b"[]\n", "no_agent")]
)
def test_when_something_else_answers(tmp_path: Path, answer: bytes, code: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "other.sock"))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ConnectError) as raised:
            ask(tmp_path / "other.sock", {"command": "hello"})
        thread.join()
    assert raised.value.code == code


def test_when_the_agent_takes_too_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "slow.sock"))
        server.listen()
        with pytest.raises(ConnectError) as raised:
            ask(tmp_path / "slow.sock", {"command": "hello"}, seconds=0.05)
    assert raised.value.code == "agent_stuck"
