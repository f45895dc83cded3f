"""Peers of a tunnel that are not ztun: TLS of the standard library, HTTP/2 as plain bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingReceived, RequestReceived, ResponseReceived, WindowUpdated

from certs.store import WorkloadCertificate
from tests.ztun.proxy.applications import Wire, Wires
from ztun.mesh.model import HBONE_PORT

E = TypeVar("E", bound=Event)

EVIL = b"bytes that must never arrive"


def client_context(directory: Path, certificate: WorkloadCertificate | None) -> ssl.SSLContext:
    """A client that trusts everybody and shows ``certificate``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _load(context, directory, certificate)
    return context


def server_context(directory: Path, certificate: WorkloadCertificate, *, alpn: str = "h2") -> ssl.SSLContext:
    """A server that lets everybody in and shows ``certificate``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if alpn:
        context.set_alpn_protocols([alpn])
    _load(context, directory, certificate)
    return context


def _load(context: ssl.SSLContext, directory: Path, certificate: WorkloadCertificate | None) -> None:
    if certificate is None:
        return
    path = directory / f"{certificate.generation}.pem"
    path.write_bytes(
        certificate.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + b"".join(one.public_bytes(Encoding.PEM) for one in certificate.chain)
    )
    context.load_cert_chain(path)


def connect_request(authority: str, payload: bytes) -> bytes:
    """What an impatient client sends before it heard anything: preface, CONNECT, DATA."""
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    connection.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
    connection.send_data(1, payload)
    return connection.data_to_send()


async def attack(ip: str, context: ssl.SSLContext, authority: str, *, source: str | None = None) -> bytes:
    """Dial a tunnel, send a request and payload at once; gives the decrypted bytes that came back."""
    local = (source, 0) if source is not None else None
    answer = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        reader, writer = await asyncio.open_connection(ip, HBONE_PORT, ssl=context, local_addr=local)
        try:
            writer.write(connect_request(authority, EVIL))
            while data := await reader.read(65536):
                answer += data
        finally:
            writer.transport.abort()
    return answer


class RogueServer:
    """A TLS server on the HBONE port of a pod. ``received`` is what it could decrypt."""

    def __init__(self, wires: Wires) -> None:
        self._wires = wires
        self.received = b""
        self.dialled = 0

    async def listen(self, ip: str, context: ssl.SSLContext | None) -> None:
        """Accept; without a context in plain TCP."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, trouble: None)  # handshakes are meant to fail here
        server = await asyncio.start_server(self._serve, ip, HBONE_PORT, ssl=context)
        self._wires.keep_server(server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._wires.keep(Wire(reader, writer))
        self.dialled += 1
        await self.serve(reader, writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say nothing."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                self.received += data


class H2Server(RogueServer):
    """An HTTP/2 server with behaviour of its own per event; ``events`` keeps what it saw."""

    def __init__(
        self,
        wires: Wires,
        *,
        answer: Callable[[H2Connection, int], Awaitable[None] | None] = lambda connection, stream: None,
        echo: bool = True,
        pongs: bool = True,
    ) -> None:
        super().__init__(wires)
        self._echo = echo
        self._answer = answer
        self._pongs = pongs
        self.events: list[Event] = []
        self.connections: list[tuple[H2Connection, asyncio.StreamWriter]] = []
        self._news = asyncio.Event()

    async def seen(self, kind: type[Event], count: int = 1) -> list[Event]:
        """Wait for so many events of a kind."""
        while len(found := [one for one in self.events if isinstance(one, kind)]) < count:
            self._news.clear()
            await self._news.wait()
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Feed ``h2``, echo DATA of answered streams if that is what it does."""
        connection = H2Connection(H2Configuration(client_side=False))
        self.connections.append((connection, writer))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self._answer(connection, event.stream_id)
                    elif isinstance(event, DataReceived):
                        connection.acknowledge_received_data(
                            event.flow_controlled_length or 0, event.stream_id
                        )
                        if self._echo:
                            connection.send_data(event.stream_id, event.data or b"")
                    if not isinstance(event, WindowUpdated):
                        self.events.append(event)
                    self._news.set()
                pending = connection.data_to_send()
                if self._pongs or not any(isinstance(one, PingReceived) for one in self.events):
                    writer.write(pending)


def answer_and_end(connection: H2Connection, stream: int) -> None:
    """Accept a CONNECT, say ``bye`` and end our direction at once; the client's stays open."""
    answer_ok(connection, stream)
    connection.send_data(stream, b"bye", end_stream=True)


def answer_ok(connection: H2Connection, stream: int) -> None:
    """Accept every CONNECT."""
    connection.send_headers(stream, [(":status", "200")])


class _Immodest(H2Connection):
    """A client that opens more streams than the server allows."""

    @property
    def open_outbound_streams(self) -> int:
        return 0


class H2Client:
    """A client of a tunnel, stream by stream; reads what came whenever somebody waits for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.connection = _Immodest(H2Configuration(client_side=True))
        self.events: list[Event] = []
        self.connection.initiate_connection()
        self.flush()

    @classmethod
    async def dial(
        cls, wires: Wires, ip: str, context: ssl.SSLContext, *, source: str | None = None
    ) -> H2Client:
        """Connect and shake hands."""
        local = (source, 0) if source is not None else None
        reader, writer = await asyncio.open_connection(ip, HBONE_PORT, ssl=context, local_addr=local)
        wires.keep(Wire(reader, writer))
        return cls(reader, writer)

    def flush(self) -> None:
        """Send what ``h2`` has to say."""
        self._writer.write(self.connection.data_to_send())

    def close(self) -> None:
        """End the tunnel."""
        self._writer.transport.abort()

    def request(self, *headers: tuple[str, str]) -> int:
        """Open a stream; gives its id."""
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, headers)
        self.flush()
        return stream

    def connect(self, authority: str, *headers: tuple[str, str]) -> int:
        """Ask for a tunnel to ``authority``."""
        return self.request((":method", "CONNECT"), (":authority", authority), *headers)

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send DATA."""
        self.connection.send_data(stream, data, end_stream=end)
        self.flush()

    async def event(self, kind: type[E], stream: int) -> E:
        """The first event of this kind on a stream."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and event.stream_id == stream:  # type: ignore[attr-defined]
                    self.events.remove(event)
                    return event
            data = await self._reader.read(65536)
            assert data, "the tunnel was closed"
            self.events += self.connection.receive_data(data)
            self.flush()

    async def answer(self, stream: int) -> dict[str, str]:
        """The headers of the answer."""
        event = await self.event(ResponseReceived, stream)
        return {name.decode(): value.decode() for name, value in event.headers or []}
