"""A relay of the lab's own in front of a node proxy, which sees what anyone between two nodes would see.

It stands where the peers dial (HBONE port of a pod) and passes every byte on to the proxy, unchanged. It keeps no
traffic: each direction is read record by record, and searched for the texts of the watches that are open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
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
    tunnels: set[Tapped] = field(default_factory=set)
    strays: set[str] = field(default_factory=set)
    """Packets that were neither of a tunnel nor of the network's own housekeeping; a tap sees none."""
    packets_between_nodes: int = 0
    """Seen on the wire; a tap sees no packets."""

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
        faults += [f"not in a tunnel: {stray}" for stray in sorted(self.strays)]
        for tunnel in self.tunnels:
            faults += [reader.broken for reader in (tunnel.up, tunnel.down) if reader.broken]
        for hello in self.hellos:
            if hello is None:
                faults.append("the server sent no ServerHello")
            elif hello.version != "TLS 1.3":
                faults.append(f"the server chose {hello.version}")
        return faults


class Tapped:
    """One connection that is seen."""

    def __init__(self) -> None:
        self.up = RecordReader()
        self.down = RecordReader()
        self.rest_up = b""
        self.rest_down = b""


class Watches:
    """The watches that are open on one place, and what they are shown."""

    def __init__(self) -> None:
        self.open: list[Watch] = []

    @contextlib.contextmanager
    def watch(self, watch: Watch) -> Iterator[Watch]:
        """Let ``watch`` see what passes until the end of the context."""
        self.open.append(watch)
        try:
            yield watch
        finally:
            self.open.remove(watch)

    def show(self, tapped: Tapped, data: bytes, *, up: bool) -> None:
        """Read the next bytes of a connection. Its end is kept as far as a secret could begin in it."""
        (tapped.up if up else tapped.down).feed(data)
        text = (tapped.rest_up if up else tapped.rest_down) + data
        longest = 0
        for watch in self.open:
            watch.tunnels.add(tapped)
            if up:
                watch.bytes_up += len(data)
            else:
                watch.bytes_down += len(data)
            watch.readable.update(secret for secret in watch.secrets if secret in text)
            longest = max(longest, *map(len, watch.secrets), 0)
        rest = text[-(longest - 1) :] if longest > 1 else b""
        if up:
            tapped.rest_up = rest
        else:
            tapped.rest_down = rest


class Tap:
    """Listens on one address and passes on to another."""

    def __init__(self, listen: tuple[str, int], forward: tuple[str, int]) -> None:
        self._listen = listen
        self._forward = forward
        self._watches = Watches()
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

    def watch(self, watch: Watch) -> AbstractContextManager[Watch]:
        """Let ``watch`` see what passes until the end of the context; several taps may fill the same one."""
        return self._watches.watch(watch)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tapped = Tapped()
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
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tapped: Tapped, *, up: bool
    ) -> None:
        while data := await reader.read(READ_BYTES):
            self._watches.show(tapped, data, up=up)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
