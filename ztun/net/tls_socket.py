"""The connection of a client whose TLS ends here: ciphertext on the wire, plaintext for the relay.

An :class:`AppSocket` with a session in between, so a relay takes it like any other.

1. No more ciphertext is read than the sink has room for as plaintext; what the session keeps is one record.
2. An orderly end is ``close_notify`` in either direction, each by itself (RFC 8446 section 6.1). A FIN without it is
   a truncation, and the other side gets a reset: it could not tell half a message from a whole one. Only a client that
   was told the end before may leave so: there was nothing left to say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from certs.alerts import describe_failure, verification_failure
from ztun.errors import TunnelTlsError
from ztun.hbone.wire import ErrorCode
from ztun.net.app_socket import CROWDED_READ_BYTES, EARLY_BYTES, AppSocket
from ztun.net.buffers import WIRE_READ_BYTES

if TYPE_CHECKING:
    import socket

    from ztun.hbone.stream import Sink, Source, TunnelStream
    from ztun.net.poller import Poller

_MAX_RECORD_BYTES = 16_384  # RFC 8446 section 5.1
_WANT_READ = 2  # SSL_ERROR_WANT_READ
_ZERO_RETURN = 6  # SSL_ERROR_ZERO_RETURN: the peer's close_notify


class TlsSocket(AppSocket):
    """One TLS connection of which this is the server. ``session`` works over memory BIOs, in accept state."""

    __slots__ = ("_from_ssl", "_handshaken", "_into_ssl", "_ready", "_shut", "_ssl", "session")

    def __init__(self, poller: Poller, sock: socket.SocketType, session: SSL.Connection) -> None:
        super().__init__(poller, sock)
        self.session = session
        self._ssl = session._ssl
        self._into_ssl = session._into_ssl
        self._from_ssl = session._from_ssl
        self._ready: asyncio.Future[None] = poller.loop.create_future()
        self._handshaken = False
        self._shut = False

    @classmethod
    def over(cls, client: AppSocket, poller: Poller, session: SSL.Connection) -> TlsSocket:
        """Take over a connection that has not started, with what was read of it; ``client`` has it no more.

        Raises :class:`TunnelTlsError` when the client has left.
        """
        if client.closed or client.read_ended:
            raise _left()
        taken = cls(poller, client.give_up(), session)
        taken.unread(client.early)
        return taken

    async def handshake(self, limit: float) -> None:
        """Complete the handshake, after the connection was made; ``limit`` is in seconds.

        Raises :class:`TunnelTlsError`. Nothing of the client's data is given away before ``start``.
        """
        self._shake()
        if not self._ready.done():
            self._resume()
        try:
            async with asyncio.timeout(limit):
                await self._ready
        except TimeoutError:
            raise TunnelTlsError(
                "tls_handshake_timeout", f"the TLS handshake took longer than {limit:g} s"
            ) from None

    def unread(self, data: bytes) -> None:
        """Take ciphertext that was read before the session was there; before ``handshake``."""
        lib.BIO_write(self._into_ssl, data, len(data))

    def start(self, sink: Sink, source: Source, *, in_place: TunnelStream | None = None) -> None:
        """Begin to read into ``sink``, first what came with the end of the handshake."""
        self._sink, self._source = sink, source
        if self._decrypt() and not self.read_ended:
            self._resume()

    # -- from the poller -------------------------------------------------------------------------------------

    def _space(self) -> memoryview:
        """Space for ciphertext: never more than what the sink takes, for plaintext is shorter."""
        view = self._buffers.wire_in.view
        if self._sink is None:
            return view[:EARLY_BYTES]
        room = self._sink.room()
        if room >= WIRE_READ_BYTES:
            return view
        return view[: room if room > 0 else CROWDED_READ_BYTES]

    def _received(self, size: int) -> None:
        """Decrypt what came and give it away before returning."""
        if self.read_ended:
            return  # RFC 8446 section 6.1: what follows close_notify is ignored
        lib.BIO_write(self._into_ssl, self._buffers.wire_in.pointer, size)
        if not self._handshaken:
            self._shake()
        elif self._sink is None or not self._decrypt():
            self._pause()

    def _ended(self) -> None:
        """FIN. Without close_notify it is an orderly end only if there was nothing left to say."""
        if self.read_ended:
            if self.end_offered:
                self._finish()
        elif self._handshaken and not self.end_offered:
            self._break(ConnectionResetError("the client ended the connection without close_notify"))
        else:
            if self._handshaken:
                self._end_read()
            self._finish()

    def _gone(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._fail_handshake(_left())
        super()._gone(error)

    # -- as a sink -------------------------------------------------------------------------------------------

    def offer(self, data: memoryview) -> bool:
        """Encrypt, hand to the kernel, queue the rest. False while the queue is long."""
        size = len(data)
        self.bytes_written += size
        if self.closed or self._finishing:
            return True
        source = ffi.from_buffer("char[]", data)
        written = 0
        while written < size:
            # partial writes are on in pyOpenSSL's contexts: one record per call may be all that is taken
            count = lib.SSL_write(self._ssl, source + written, size - written)
            if count <= 0:
                self._fail()
                return True
            written += count
        self._send_ciphertext()
        return not self.congested

    def offer_end(self) -> None:
        """Send close_notify and FIN behind what is queued; close when the other direction has ended too."""
        if not (self.end_offered or self.closed or self._finishing):
            self._shut_down()
        super().offer_end()

    def abort(self, code: int) -> None:
        """End at once: with close_notify and FIN for NO_ERROR, otherwise with RST."""
        if code == ErrorCode.NO_ERROR and not (self.closed or self._finishing):
            self._shut_down()
        super().abort(code)

    # -- inside ----------------------------------------------------------------------------------------------

    def _shake(self) -> None:
        try:
            self.session.do_handshake()
        except SSL.WantReadError:
            self._send_ciphertext()
            return
        except SSL.Error as error:
            failure = self._refusal(error)
            self._send_ciphertext()  # the alert that tells the client why
            self._fail_handshake(failure)
            return
        self._handshaken = True
        self._send_ciphertext()
        self._pause()
        if not self._ready.done():
            self._ready.set_result(None)

    def _refusal(self, error: SSL.Error) -> TunnelTlsError:
        """Why a handshake failed: our verification of the client's certificate, or what OpenSSL says."""
        number = lib.SSL_get_verify_result(self._ssl)
        found = verification_failure(number, 0) if number else describe_failure(error)
        return TunnelTlsError(found.code, found.message.replace("peer", "client"), hint=found.hint)

    def _fail_handshake(self, error: TunnelTlsError) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody may be waiting any more

    def _decrypt(self) -> bool:
        """Give away all that can be decrypted; False when the sink wants no more for now."""
        sink, ssl, plaintext = self._sink, self._ssl, self._buffers.plaintext
        assert sink is not None
        limit = len(plaintext.memory) - _MAX_RECORD_BYTES
        more, count = True, 1
        while count > 0 and not (self.closed or self._finishing):
            filled = 0
            while filled <= limit:
                count = lib.SSL_read(ssl, plaintext.pointer + filled, _MAX_RECORD_BYTES)
                if count <= 0:
                    break
                filled += count
            # asked before the bytes are given away: what takes them may use OpenSSL too
            reason = lib.SSL_get_error(ssl, count) if count <= 0 else 0
            if filled:
                self.bytes_read += filled
                more = sink.offer(plaintext.view[:filled])
            if reason == _ZERO_RETURN:
                self._end_read()
                return False
            if reason and reason != _WANT_READ:
                self._fail()
                return False
        self._send_ciphertext()  # the answer to a key update
        return more

    def _end_read(self) -> None:
        """The client has said all it had to say."""
        self.read_ended = True
        if self._sink is not None:
            self._sink.offer_end()
        if self.end_offered:
            self._finish()

    def _shut_down(self) -> None:
        if self._handshaken and not self._shut:
            self._shut = True
            lib.ERR_clear_error()
            lib.SSL_shutdown(self._ssl)
            self._send_ciphertext()

    def _fail(self) -> None:
        """OpenSSL refused a read or a write for good: an alert, or bytes that were changed on the way."""
        reason = "the TLS session failed"
        try:
            self.session.recv(1)  # pyOpenSSL turns the error queue into an exception with its reasons
        except SSL.Error as error:
            reason = describe_failure(error).message
        self._send_ciphertext()
        self._reset(ConnectionResetError(reason))

    def _send_ciphertext(self) -> None:
        buffer = self._buffers.wire_out
        while not self.closed:
            size = lib.BIO_read(self._from_ssl, buffer.pointer, len(buffer.memory))
            if size <= 0:
                return
            self._write(buffer.view[:size])


def _left() -> TunnelTlsError:
    return TunnelTlsError("tls_closed", "the client left during the TLS handshake")
