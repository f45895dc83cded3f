"""SOCKS5 as far as a proxy's clients need it: no authentication, CONNECT only (RFC 1928), no I/O.

Unlike ztunnel the success reply is sent after the destination was dialled, so that a client learns of a failure.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ztun.errors import ConnectError, ConnectRefused, DnsError, PolicyDenied, RouteError, ZtunError
from ztun.mesh.address import is_hostname
from ztun.mesh.model import canonical_ip

VERSION = 5
MAX_REQUEST_BYTES = 2 + 255 + 4 + 1 + 255 + 2  # the longest greeting and the longest request
_NO_AUTHENTICATION = 0
_NO_METHOD = 0xFF
_CONNECT = 1
SUCCEEDED, GENERAL, NOT_ALLOWED, NETWORK, HOST, REFUSED, COMMAND = 0, 1, 2, 3, 4, 5, 7
_ADDRESS_TYPE = 8


class SocksError(Exception):
    """The client does not speak SOCKS5, or asks for what is not supported; ``reply`` is the last thing to send."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """What the client wants: an IP address or a name, and a port."""

    host: str
    port: int


class SocksNegotiation:
    """Bytes in, replies out, until ``request`` is known. What follows the request stays in ``rest``."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._greeted = False
        self.request: SocksRequest | None = None

    @property
    def rest(self) -> bytes:
        """Bytes of the client behind its request."""
        return bytes(self._data)

    def feed(self, data: bytes) -> bytes:
        """Take bytes, give what must be sent now. Raises :class:`SocksError`."""
        self._data += data
        reply = b""
        if not self._greeted:
            reply = self._greeting()
        if self._greeted and self.request is None:
            try:
                self._request()
            except SocksError as error:
                raise SocksError(str(error), reply + error.reply) from None
        if self.request is None and len(self._data) > MAX_REQUEST_BYTES:
            raise SocksError("the SOCKS5 request is too long")
        return reply

    def _greeting(self) -> bytes:
        data = self._data
        if data and data[0] != VERSION:
            raise SocksError(f"SOCKS version {data[0]}, only 5 is served")
        if len(data) < 2 or len(data) < 2 + data[1]:
            return b""
        methods = data[2 : 2 + data[1]]
        if _NO_AUTHENTICATION not in methods:
            raise SocksError("the client insists on authentication", bytes((VERSION, _NO_METHOD)))
        del data[: 2 + data[1]]
        self._greeted = True
        return bytes((VERSION, _NO_AUTHENTICATION))

    def _request(self) -> None:
        data = self._data
        if len(data) < 5:
            return
        version, command, _, kind = data[:4]
        sizes = {1: 4, 3: 1 + data[4], 4: 16}
        if version != VERSION:
            raise SocksError("the request is not SOCKS5", reply(GENERAL))
        if kind not in sizes:
            raise SocksError(f"address type {kind} is unknown", reply(_ADDRESS_TYPE))
        end = 4 + sizes[kind]
        if len(data) < end + 2:
            return
        address, port = bytes(data[4:end]), int.from_bytes(data[end : end + 2], "big")
        del data[: end + 2]
        if command != _CONNECT:
            raise SocksError(f"command {command} is not CONNECT", reply(COMMAND))
        if kind == 3:
            host = address[1:].decode("ascii", "backslashreplace").lower()
            if not is_hostname(host):
                raise SocksError("the name is not a host name", reply(GENERAL))
        else:
            host = canonical_ip(str(ipaddress.ip_address(address)))
        if not port:
            raise SocksError("port 0 cannot be dialled", reply(GENERAL))
        self.request = SocksRequest(host, port)


def reply(code: int) -> bytes:
    """A reply with the unspecified bound address, as ztunnel sends it."""
    return bytes((VERSION, code, 0, 1)) + bytes(6)


def reply_code(error: ZtunError | None) -> int:
    """The code for the end of a dial (RFC 1928 section 6)."""
    if error is None:
        return SUCCEEDED
    if isinstance(error, PolicyDenied) or (isinstance(error, ConnectRefused) and error.status in (401, 403)):
        return NOT_ALLOWED
    if isinstance(error, RouteError | DnsError):
        return HOST
    if isinstance(error, ConnectError):
        return {"connect_refused": REFUSED, "connect_unreachable": NETWORK}.get(error.code, HOST)
    return GENERAL
