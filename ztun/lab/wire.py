"""Is it TLS 1.3? Judged from the bytes of a connection alone, as anyone on the path could.

A TLS stream is a sequence of records: type, version, length (RFC 8446 section 5.1). The first record of each
side is a hello in plain text, whose ServerHello names the version and the cipher (section 4.1.3); in TLS 1.3
everything after it is of type application_data, but for the change_cipher_spec record that middleboxes expect
(appendix D.4).
"""

from __future__ import annotations

from dataclasses import dataclass, field

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
RECORD_HEADER_BYTES = 5
MAX_RECORD_BYTES = 2**14 + 256  # RFC 8446 section 5.2
MAX_HELLO_BYTES = 4096  # of the first record that are kept for reading
SERVER_HELLO = 2
SUPPORTED_VERSIONS = 43
VERSIONS = {0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
CIPHERS = {  # RFC 8446 appendix B.4
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}


@dataclass(frozen=True, slots=True)
class ServerHello:
    """What the server chose."""

    version: str
    cipher: str


@dataclass(slots=True)
class RecordReader:
    """One direction of a connection, record by record, in any chunking. Keeps no more than the first hello.

    ``broken`` says what was not a TLS 1.3 record, and stays empty while everything is.
    """

    broken: str = ""
    records: int = 0
    application_data_bytes: int = 0
    hello: bytes = b""
    _header: bytearray = field(default_factory=bytearray)
    _kind: int = 0
    _left: int = 0

    def feed(self, data: bytes) -> None:
        """Read on; once broken, nothing more is looked at."""
        view = memoryview(data)
        while view and not self.broken:
            view = self._body(view) if self._left else self._head(view)

    def _head(self, view: memoryview) -> memoryview:
        missing = RECORD_HEADER_BYTES - len(self._header)
        self._header += view[:missing]
        if len(self._header) == RECORD_HEADER_BYTES:
            kind, major, minor = self._header[:3]
            length = int.from_bytes(self._header[3:])
            # A first ClientHello may say 3.1 (section 5.1); a second one follows a HelloRetryRequest.
            version_fits = (major, minor) == (3, 3) or (self.records == 0 and (major, minor) == (3, 1))
            if not version_fits or not 0 < length <= MAX_RECORD_BYTES:
                self.broken = f"not a TLS record: {bytes(self._header).hex(' ')}"
            elif not self._may_come(kind):
                self.broken = f"record {self.records} has type {kind}"
            self.records += 1
            self._kind, self._left = kind, length
            self._header.clear()
        return view[missing:]

    def _may_come(self, kind: int) -> bool:
        if self.records == 0:
            return kind == HANDSHAKE
        if self.application_data_bytes:
            return kind == APPLICATION_DATA
        return kind in (HANDSHAKE, CHANGE_CIPHER_SPEC, APPLICATION_DATA)

    def _body(self, view: memoryview) -> memoryview:
        part = view[: self._left]
        self._left -= len(part)
        if self._kind == HANDSHAKE:
            self.hello += bytes(part[: MAX_HELLO_BYTES - len(self.hello)])
        elif self._kind == APPLICATION_DATA:
            self.application_data_bytes += len(part)
        return view[len(part) :]


def read_server_hello(hello: bytes) -> ServerHello | None:
    """Version and cipher of a ServerHello message; None when the bytes are not one."""
    try:
        if hello[0] != SERVER_HELLO:
            return None
        at = 4 + 2 + 32  # message header, legacy version, random
        at += 1 + hello[at]  # session id
        cipher = int.from_bytes(hello[at : at + 2])
        version = int.from_bytes(hello[4:6])
        at += 3  # cipher, compression
        end = at + 2 + int.from_bytes(hello[at : at + 2])
        at += 2
        while at + 4 <= end <= len(hello):
            kind, length = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
            if kind == SUPPORTED_VERSIONS:
                version = int.from_bytes(hello[at + 4 : at + 6])
            at += 4 + length
    except IndexError:
        return None
    return ServerHello(VERSIONS.get(version, f"0x{version:04x}"), CIPHERS.get(cipher, f"0x{cipher:04x}"))
