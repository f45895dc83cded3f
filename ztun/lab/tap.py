"""A relay of the lab's own in front of a node proxy, which sees what anyone between two nodes would see.

It stands where the peers dial (HBONE port of a pod) and passes every byte on to the proxy, unchanged. It keeps no
traffic: each direction is read record by record, and searched for the texts of the watches that are open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ztun.lab.wire import RecordReader, ServerHello, read_server_hello

READ_BYTES = 64 * 1024


@dataclass(slots=True)
class Watch:
    """What passed while it was open: bytes per direction, secrets that could be read, records that were wrong."""

    secrets: tuple[bytes, ...]
    bytes_up: int = 0
    bytes_down: int = 0
    readable: set[bytes] = field(default_factory=set)
    tunnels: set[_Tapped] = field(default_factory=set)

    @property
    def hellos(self) -> set[ServerHello | None]:
        """What the server of each tunnel that was used had chosen; None when its first bytes were no hello."""
        return {read_server_hello(tunnel.down.hello) for tunnel in self.tunnels}

    @property
    def faults(self) -> list[str]:
        """Why this was not TLS 1.3 and nothing else; empty when it was."""
        faults = [f"{secret.decode(errors='replace')!r} was readable" for secret in sorted(self.readable)]
        if not (self.bytes_up and self.bytes_down):
            faults.append(f"{self.bytes_up} bytes up and {self.bytes_down} down were seen")
        for tunnel in self.tunnels:
            faults += [reader.broken for reader in (tunnel.up, tunnel.down) if reader.broken]
        for hello in self.hellos:
            if hello is None:
                faults.append("the server sent no ServerHello")
            elif hello.version != "TLS 1.3":
                faults.append(f"the server chose {hello.version}")
        return faults


class _Tapped:
    """One connection through the tap."""

    def __init__(self) -> None:
        self.up = RecordReader()
        self.down = RecordReader()


class Tap:
    """Listens on one address and passes on to another."""

    def __init__(self, listen: tuple[str, int], forward: tuple[str, int]) -> None:
        self._listen = listen
        self._forward = forward
        self._watches: list[Watch] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raises ``OSError`` when the address is taken."""
        self._server = await asyncio.start_server(self._accepted, *self._listen)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._server is not None
        ip, port = self._server.sockets[0].getsockname()[:2]
        return ip, port

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def watch(self, watch: Watch) -> Iterator[Watch]:
        """Let ``watch`` see what passes until the end of the context; several taps may fill the same one."""
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tapped = _Tapped()
        onward: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError):
                # The proxy behind must see the address that the peer came from.
                peer_ip = writer.get_extra_info("peername")[0]
                back, onward = await asyncio.open_connection(*self._forward, local_addr=(peer_ip, 0))
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, onward, tapped, up=True))
                    group.create_task(self._pump(back, writer, tapped, up=False))
        except BaseExceptionGroup as errors:
            # A reset of either side ends both.
            _, unexpected = errors.split(OSError)
            if unexpected is not None:
                raise unexpected from None
        finally:
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tapped: _Tapped, *, up: bool
    ) -> None:
        records = tapped.up if up else tapped.down
        overlap = b""
        while data := await reader.read(READ_BYTES):
            records.feed(data)
            overlap = self._show(tapped, overlap + data, len(data), up=up)
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def _show(self, tapped: _Tapped, text: bytes, new_bytes: int, *, up: bool) -> bytes:
        """Tell the open watches; gives the end of the text that a secret could begin in."""
        longest = 0
        for watch in self._watches:
            watch.tunnels.add(tapped)
            if up:
                watch.bytes_up += new_bytes
            else:
                watch.bytes_down += new_bytes
            watch.readable.update(secret for secret in watch.secrets if secret in text)
            longest = max(longest, *map(len, watch.secrets), 0)
        return text[-(longest - 1) :] if longest > 1 else b""
