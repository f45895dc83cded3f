"""TLS over a plain socket: the one seam between the tunnel and OpenSSL.

Ciphertext goes through memory BIOs. The calls per chunk are OpenSSL's own, by way of pyOpenSSL's binding: its public
methods allocate and copy once more in each direction, which costs a tenth of the bulk rate.

1. Bytes to send are collected and written once per turn of the poller, so that records, ``SSL_write`` calls and system
   calls scale with turns and not with frames (1.7 times the requests at 64 connections).
2. Large frames are encrypted at once from the memory they were read into.
3. Ciphertext goes to the socket directly while nothing is queued; only the rest is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from ztun.net.poller import READABLE
from ztun.net.stream_socket import StreamSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztun.net.poller import Poller

CONGESTED_BYTES = 512 * 1024  # above this much unsent ciphertext the sources of a tunnel are stopped
RELAXED_BYTES = 128 * 1024
LINGER_SECONDS = 2.0  # for the peer's FIN after ours, again while it still takes what we sent
_MAX_RECORD_BYTES = 16_384  # RFC 8446 section 5.1
_WANT_READ = 2  # SSL_ERROR_WANT_READ
_ZERO_RETURN = 6  # SSL_ERROR_ZERO_RETURN: the peer's close_notify


class TlsUser(Protocol):
    """Who uses the decrypted bytes."""

    def handshake_done(self, transport: TlsTransport) -> None:
        """The peer is verified; bytes may be sent and will be received."""

    def received(self, data: memoryview, now: float) -> None:
        """Decrypted bytes, valid during the call only."""

    def congested(self) -> None:
        """More unsent bytes than ``CONGESTED_BYTES``."""

    def drained(self) -> None:
        """Fewer unsent bytes than ``RELAXED_BYTES`` again."""

    def closed(self, error: Exception | None) -> None:
        """The connection is gone; ``error`` is what OpenSSL or the kernel said, None for an orderly end."""


class TlsTransport(StreamSocket):
    """One TLS connection. Implements ``hbone.connection.Output``."""

    __slots__ = (
        "_buffers",
        "_closing",
        "_from_ssl",
        "_handshaken",
        "_into_ssl",
        "_patient",
        "_pending",
        "_scheduled",
        "_ssl",
        "_time",
        "_user",
        "error",
        "lingers",
        "session",
    )

    def __init__(self, poller: Poller, user: TlsUser) -> None:
        super().__init__(poller, high=CONGESTED_BYTES, low=RELAXED_BYTES)
        self._time: Callable[[], float] = poller.loop.time
        self._buffers = poller.buffers
        self._user = user
        self._pending: list[bytes] = []
        self._scheduled = False
        self._handshaken = False
        self._closing = False
        self.lingers = False
        """Whether its user has done with it, and only the peer's end is waited for."""
        self._patient = False
        self.session: SSL.Connection | None = None
        self.error: Exception | None = None

    def start(self, session: SSL.Connection) -> None:
        """Begin the handshake on a socket that is connected."""
        if self._closing:
            return
        self.session = session
        self._ssl = session._ssl
        self._into_ssl = session._into_ssl
        self._from_ssl = session._from_ssl
        self._resume()
        self._handshake()

    # -- from the poller -------------------------------------------------------------------------------------

    def _space(self) -> memoryview:
        """The shared buffer for ciphertext."""
        return self._buffers.wire_in.view

    def _received(self, size: int) -> None:
        """Decrypt what came and give it away before returning."""
        if self.lingers:
            return
        lib.BIO_write(self._into_ssl, self._buffers.wire_in.pointer, size)
        if self._handshaken:
            self._decrypt()
        else:
            self._handshake()

    def _ended(self) -> None:
        """The peer's socket ended without close_notify, or after it: the tunnel is over either way."""
        if self.lingers:
            self._end(None)
            return
        if not self._handshaken and self.error is None:
            self.error = SSL.SysCallError(-1, "Unexpected EOF")
        self._closing = True
        self._finish()

    def _finished(self) -> None:
        """Close; in order this is to send FIN, and to close when the peer has, or reads no more.

        Were the socket closed at once, what the peer still sends (a WINDOW_UPDATE for our last bytes) would be answered
        with RST, and both kernels throw away what is under way (RFC 9293 section 3.6.1).
        """
        if not self._patient or self._read_over or self.lingers or not self._watched:
            self._end(None)
            return
        self.lingers = True
        self._tell_closed(None)
        self._write_end()
        if not self.closed:
            self._want(READABLE)
            self._poller.loop.call_later(LINGER_SECONDS, self._look_for_end, self.unacknowledged)

    def _look_for_end(self, before: int) -> None:
        left = self.unacknowledged
        if 0 < left < before:
            self._poller.loop.call_later(LINGER_SECONDS, self._look_for_end, left)
        else:
            self._end(None)

    def _congested(self) -> None:
        """The kernel takes no more."""
        self._user.congested()

    def _relaxed(self) -> None:
        """The kernel takes bytes again."""
        self._user.drained()

    def _gone(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._closing = True
        self._pending.clear()
        if self.lingers:
            self.lingers = False
        else:
            self._tell_closed(error)

    def _tell_closed(self, error: Exception | None) -> None:
        """In the next turn, not in the middle of what was its end."""
        self._poller.loop.call_soon(self._user.closed, self.error or error)

    # -- output ----------------------------------------------------------------------------------------------

    def append(self, chunk: bytes) -> None:
        """Send at the end of this tick."""
        self._pending.append(chunk)
        if not self._scheduled:
            self._scheduled = True
            self._poller.after_turn(self._flush)

    def write_through(self, frame: memoryview) -> None:
        """Encrypt and send now, after what was appended."""
        if self._closing:
            return
        if self._pending:
            self._encrypt(b"".join(self._pending))
            self._pending.clear()
        self._encrypt(frame)
        self._send_ciphertext()

    def close(self) -> None:
        """Send what was appended, close_notify, then close; one that lingers is closed now."""
        self._patient = False
        if self.lingers:
            self._end(None)
            return
        self._close()

    def close_in_order(self) -> None:
        """The same for a tunnel that has done all its work: it waits for the peer, so that nothing sent is lost.

        Never for one that is cut: a socket that lingers would keep the network namespace of its pod.
        """
        self._patient = True
        self._close()

    def _close(self) -> None:
        if self._closing:
            return
        self._write_pending()
        self._closing = True
        if self._handshaken:
            lib.ERR_clear_error()
            lib.SSL_shutdown(self._ssl)
            self._send_ciphertext()
        self._finish()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._closing = True
        self._end(None)

    def _flush(self) -> None:
        self._scheduled = False
        if not self._closing:
            self._write_pending()

    def _write_pending(self) -> None:
        pending = self._pending
        if pending and self._handshaken:
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            self._encrypt(data)
            self._send_ciphertext()

    def _encrypt(self, data: bytes | memoryview) -> None:
        size = len(data)
        source = data if isinstance(data, bytes) else ffi.from_buffer("char[]", data)
        count = written = lib.SSL_write(self._ssl, source, size)
        if 0 < count < size:
            source = ffi.from_buffer("char[]", data)
        while count > 0 and written < size:
            # partial writes are on in pyOpenSSL's contexts: one record per call may be all that is taken
            count = lib.SSL_write(self._ssl, source + written, size - written)
            written += count
        if count <= 0:
            self._fail(lib.SSL_get_error(self._ssl, count))

    def _send_ciphertext(self) -> None:
        buffer = self._buffers.wire_out
        while not self.closed:
            size = lib.BIO_read(self._from_ssl, buffer.pointer, len(buffer.memory))
            if size <= 0:
                return
            self._write(buffer.view[:size])
            if size < len(buffer.memory):
                return

    # -- input -----------------------------------------------------------------------------------------------

    def _handshake(self) -> None:
        assert self.session is not None
        try:
            self.session.do_handshake()
        except SSL.WantReadError:
            self._send_ciphertext()
            return
        except SSL.Error as error:
            self.error = error
            self._send_ciphertext()  # the alert that tells the peer why
            self._closing = True
            self._finish()
            return
        self._handshaken = True
        self._user.handshake_done(self)
        self._write_pending()
        self._send_ciphertext()
        if not self._closing:
            self._decrypt()

    def _decrypt(self) -> None:
        plaintext = self._buffers.plaintext
        pointer = plaintext.pointer
        limit = len(plaintext.memory) - _MAX_RECORD_BYTES
        ssl = self._ssl
        read = lib.SSL_read
        reason = 0
        more = True
        while more and not self._closing:
            filled = 0
            while filled <= limit:
                count = read(ssl, pointer + filled, _MAX_RECORD_BYTES)
                if count <= 0:
                    # asked before the bytes are given away: what takes them may use OpenSSL too
                    reason = lib.SSL_get_error(ssl, count)
                    more = False
                    break
                filled += count
                if count < _MAX_RECORD_BYTES and not lib.BIO_get_mem_data(self._into_ssl, ffi.NULL):
                    more = False  # to be told that there is no other record takes two calls
                    break
            if filled:
                self._user.received(plaintext.view[:filled], self._time())
        if reason not in (0, _WANT_READ) and not self._closing:
            self._fail(reason)

    def _fail(self, reason: int) -> None:
        """OpenSSL refused a read or a write for good: an orderly end, or an alert."""
        if self.session is not None and reason != _ZERO_RETURN:
            try:
                self.session.recv(1)  # pyOpenSSL turns the error queue into an exception with its reasons
            except SSL.Error as error:
                self.error = self.error or error
        self._closing = True
        self._finish()
