"""The first message of a TLS client, read from the outside: the server name it asks for.

Sources: RFC 8446 sections 4.1.2 and 5.1 (the records and the message), RFC 6066 section 3 (server_name),
RFC 7301 (ALPN). Nothing is changed or consumed; the bytes go on to whoever terminates TLS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HELLO_BYTES = 16 * 1024
"""A ClientHello that is not complete after so many bytes is not waited for. Browsers send less than 2 KiB."""
_MAX_RECORDS = 32  # bounds the work for a client that sends many tiny ones; real clients send one or two
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAX_RECORD_BYTES = 2**14  # RFC 8446 section 5.1
_SERVER_NAME = 0
_HOST_NAME = 0
_PROTOCOLS = 16
# RFC 6066: a DNS name in ASCII, an internationalized one as A-label; "_" occurs in practice.
_NAME = re.compile(
    rb"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62}))*\Z", re.IGNORECASE
)


class ClientHelloError(ValueError):
    """The bytes are not the beginning of a TLS connection, or its ClientHello is malformed."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client asks for: ``server_name`` in lower case, empty without one; ``protocols`` of ALPN in order."""

    server_name: str = ""
    protocols: tuple[str, ...] = ()


def read_client_hello(data: bytes) -> ClientHello | None:
    """Read from the first bytes of a connection; ``None`` when more are needed.

    Raises :class:`ClientHelloError` as soon as it can be seen that no valid ClientHello comes, and when it is
    larger than ``MAX_HELLO_BYTES``.
    """
    message = _message(data)
    if message is None:
        if len(data) >= MAX_HELLO_BYTES:
            raise ClientHelloError(f"the ClientHello is larger than {MAX_HELLO_BYTES} bytes")
        return None
    reader = _Reader(message)
    reader.take(2 + 32)  # legacy version, random
    reader.vector(1, maximum=32)  # session id
    reader.vector(2, minimum=2)  # cipher suites
    reader.vector(1, minimum=1)  # compression methods
    if not reader.left:
        return ClientHello()
    extensions = _Reader(reader.vector(2))
    reader.end()
    name = ""
    protocols: tuple[str, ...] = ()
    seen: set[int] = set()
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in seen:
            raise ClientHelloError(f"extension {kind} occurs twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(content)
        elif kind == _PROTOCOLS:
            protocols = _protocols(content)
    return ClientHello(name, protocols)


def _message(data: bytes) -> bytes | None:
    """The body of the first handshake message, which may be spread over several records."""
    body = bytearray()
    at = 0
    for _ in range(_MAX_RECORDS):
        head = data[at : at + 5]
        # Judged byte by byte: a client that speaks something else may never send a whole header.
        if head[:1] and head[0] != _HANDSHAKE:
            raise ClientHelloError("not a TLS handshake")
        if head[1:2] and head[1] != 3:
            raise ClientHelloError("not a version of TLS")
        if len(head) < 5:
            return None
        length = int.from_bytes(head[3:])
        if not 0 < length <= _MAX_RECORD_BYTES:
            raise ClientHelloError(f"a handshake record of {length} bytes")
        body += data[at + 5 : at + 5 + length]
        if body and body[0] != _CLIENT_HELLO:
            raise ClientHelloError("the first message is not a ClientHello")
        if len(body) >= 4:
            size = int.from_bytes(body[1:4])
            if size > MAX_HELLO_BYTES:
                raise ClientHelloError(f"a ClientHello of {size} bytes")
            if len(body) >= 4 + size:
                return bytes(body[4 : 4 + size])
        at += 5 + length
        if at > len(data):
            return None
    raise ClientHelloError(f"a ClientHello in more than {_MAX_RECORDS} records")


def _server_name(content: bytes) -> str:
    names = _Reader(_Reader(content).only_vector(2, minimum=1))
    found = ""
    while names.left:
        kind = names.number(1)
        name = names.vector(2, minimum=1)
        if kind != _HOST_NAME:
            continue
        if found:
            raise ClientHelloError("two host names")
        if not _NAME.match(name):
            raise ClientHelloError("the server name is not a DNS name")
        found = name.decode("ascii").lower()
    return found


def _protocols(content: bytes) -> tuple[str, ...]:
    names = _Reader(_Reader(content).only_vector(2, minimum=2))
    found: list[str] = []
    while names.left:
        found.append(names.vector(1, minimum=1).decode("latin-1"))
    return tuple(found)


class _Reader:
    """Takes fields off the front of some bytes; too few raise :class:`ClientHelloError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ClientHelloError("a field is longer than the message")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int, *, minimum: int = 0, maximum: int = _MAX_RECORD_BYTES) -> bytes:
        length = self.number(size)
        if not minimum <= length <= maximum:
            raise ClientHelloError(f"a field of {length} bytes")
        return self.take(length)

    def only_vector(self, size: int, *, minimum: int) -> bytes:
        found = self.vector(size, minimum=minimum)
        self.end()
        return found

    def end(self) -> None:
        if self.left:
            raise ClientHelloError("bytes behind the last field")
