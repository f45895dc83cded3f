"""A TLS client that a test drives step by step: the ssl module over a connection of the test's own."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.ztun.proxy.applications import Wire

READ_BYTES = 64 * 1024


def client_context(
    authority: str, *, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Trusts one CA (PEM text), and shows a certificate if it is given one."""
    context = ssl.create_default_context(cadata=authority)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class TlsClient:
    """One session over ``wire``. FIN and close_notify are sent apart."""

    def __init__(self, wire: Wire, context: ssl.SSLContext, name: str | None) -> None:
        self.wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    async def handshake(self) -> None:
        """Raises ``ssl.SSLError`` or ``ConnectionError``."""
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self._fill()
            else:
                await self.flush()
                return

    async def send(self, data: bytes) -> None:
        """Encrypt and send."""
        self.session.write(data)
        await self.flush()

    async def receive(self, count: int) -> bytes:
        """So many bytes; fewer when the server ends before."""
        found = b""
        while len(found) < count:
            try:
                data = self.session.read(count - len(found))
            except ssl.SSLWantReadError:
                await self._fill()
                continue
            except ssl.SSLZeroReturnError:
                return found
            if not data:
                return found
            found += data
        return found

    async def receive_all(self) -> bytes:
        """Everything up to the server's close_notify; raises ``ssl.SSLError`` when there is none."""
        found = bytearray()
        while True:
            try:
                data = self.session.read(READ_BYTES)
            except ssl.SSLWantReadError:
                await self._fill()
                continue
            except ssl.SSLZeroReturnError:
                return bytes(found)
            if not data:
                return bytes(found)
            found += data

    async def notify_close(self) -> None:
        """Send close_notify; reading goes on."""
        with contextlib.suppress(ssl.SSLWantReadError):  # the server's own, which may come later
            self.session.unwrap()
        await self.flush()

    async def flush(self) -> None:
        """Send what the session has to say."""
        if data := self._outgoing.read():
            await self.wire.send(data)

    async def _fill(self) -> None:
        data = await self.wire.reader.read(READ_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
