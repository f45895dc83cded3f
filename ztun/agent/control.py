"""The control socket of the agent: one JSON object a line, a question and an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ztun.agent.unix_socket import listen
from ztun.errors import ConnectError, EnrolmentError, ZtunError
from ztun.telemetry.logging import get_logger

MAX_LINE_BYTES = 64 * 1024  # a question is a few names
MAX_ANSWER_BYTES = 16 * 1024 * 1024  # ten thousand pods
MAX_CLIENTS = 32
IDLE_SECONDS = 60.0  # for a client to ask
ANSWER_SECONDS = 60.0  # for the agent: a pod in and out again, each with its deadlines
ALL_SECONDS = 600.0  # for the agent to let out a thousand pods

_log = get_logger("agent::control")


class ControlSocket:
    """Answers on ``path`` with what ``handle`` gives; an error becomes its code, message and hint."""

    def __init__(self, path: Path, handle: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._path = path
        self._handle = handle
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; raises :class:`ConfigError` ``socket_unusable``."""
        sock = listen(self._path, socket.SOCK_STREAM, "--control")
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while len(self._clients) <= MAX_CLIENTS:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                async with asyncio.timeout(IDLE_SECONDS):
                    await writer.drain()
        except (OSError, TimeoutError, ValueError):  # gone, silent, or a line without end
            return
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            return {"ok": False, "code": "bad_request", "message": f"not a JSON object: {error}", "hint": ""}
        try:
            return {"ok": True, **await self._handle(request)}
        except ZtunError as error:
            return {"ok": False, "code": error.code, "message": str(error), "hint": error.hint}
        except OSError as error:
            _log.error("a command failed", error=str(error))
            return {"ok": False, "code": "failed", "message": str(error), "hint": "the agent's log says more"}


def ask(path: Path, request: Mapping[str, Any], *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """Ask a running agent and give its answer, waiting for so long.

    Raises :class:`ConnectError` ``no_agent`` when none answers, and what the agent itself says went wrong.
    """
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(seconds)
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline(MAX_ANSWER_BYTES)
        if not line:
            raise ConnectError("agent_ended", f"the agent on {path} ended before it answered")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
    except TimeoutError as error:
        raise ConnectError(
            "agent_stuck", f"the agent on {path} did not answer within {seconds:.0f} s", hint="see its log"
        ) from error
    except PermissionError as error:
        raise ConnectError(
            "no_agent",
            f"this user may not talk to the agent on {path}",
            hint="the agent's user, or root, may",
        ) from error
    except OSError as error:
        raise ConnectError(
            "no_agent",
            f"no agent answers on {path}: {error.strerror or error}",
            hint="start one with 'ztun agent', or name its socket with --control",
        ) from error
    except ValueError as error:
        raise ConnectError("no_agent", f"what answers on {path} is not an agent") from error
    if answer.pop("ok", False):
        return answer
    message, hint = str(answer.get("message", "")), str(answer.get("hint", ""))
    raise EnrolmentError(str(answer.get("code", "")), message, hint=hint)
