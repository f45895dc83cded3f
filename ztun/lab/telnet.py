"""The command that the examples type: ``telnet``, and a client that says the same where there is none.

``python -m ztun.lab.telnet HOST PORT`` (or ``HOST:PORT``) connects, sends what it reads, prints what comes back, and
ends when either side does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence

from ztun.lab.client import ANSWER_SECONDS, Conversation
from ztun.lab.process import LabError

CONNECTED = b"Escape character"  # the beginning of the last line that telnet says before the server speaks
READ_BYTES = 64 * 1024


def telnet_command(host: str, port: int) -> list[str]:
    """What to type: the installed telnet, else the client of the lab."""
    if shutil.which("telnet"):
        return ["telnet", host, str(port)]
    return [sys.executable, "-m", "ztun.lab.telnet", host, str(port)]


@contextlib.asynccontextmanager
async def typed(command: Sequence[str]) -> AsyncIterator[Conversation]:
    """Run a telnet, and talk through it once it is connected.

    Raises ``ConnectionError`` with what it said when it did not connect, :class:`LabError` when it does nothing.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while line := await child.stdout.readline():
                    if line.startswith(CONNECTED):
                        break
                else:
                    said = (await child.stderr.read()).decode(errors="replace").strip()
                    raise ConnectionError(f"{' '.join(command)}: {said}")
        except TimeoutError:
            raise LabError("lab_no_answer", f"{' '.join(command)} did not connect") from None
        yield Conversation(child.stdout, child.stdin)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.communicate()


def main(arguments: Sequence[str]) -> int:
    """Be a telnet; gives the exit status."""
    host, port = (arguments[0].rpartition(":")[::2] if len(arguments) == 1 else arguments[:2]) or ("", "")
    if not host or not port.isdecimal():
        print("usage: python -m ztun.lab.telnet HOST PORT", file=sys.stderr)
        return 2
    print(f"Trying {host}...", flush=True)
    try:
        sock = socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS)
    except OSError as error:
        print(f"telnet: {host}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"Connected to {host}.\nEscape character is '^]'.", flush=True)
    with sock:
        sock.settimeout(None)
        try:
            _relay(sock)
        except OSError as error:
            print(f"Connection closed: {error.strerror}.", file=sys.stderr)
            return 1
    return 0


def _relay(sock: socket.socket) -> None:
    with selectors.DefaultSelector() as ready:
        ready.register(sock, selectors.EVENT_READ)
        ready.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is sock:
                    if not (data := sock.recv(READ_BYTES)):
                        return
                    sys.stdout.buffer.write(data)
                    sys.stdout.flush()
                elif data := os.read(sys.stdin.fileno(), READ_BYTES):
                    sock.sendall(data)
                else:
                    return


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
