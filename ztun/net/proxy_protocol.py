"""The PROXY protocol, version 2: the header that tells a proxy who the client is, written and read.

Source: HAProxy's proxy-protocol.txt section 2.2; TLV type 0xD0 is Istio's, the client's SPIFFE identity.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from ztun.mesh.model import canonical_ip

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
TLV_SPIFFE = 0xD0
MAX_HEADER_BYTES = 4096  # addresses, a SPIFFE identity of 2048 bytes, and as much again for TLVs of others
_VERSION = 2
_LOCAL, _PROXY = 0, 1  # commands
_VERSION_COMMAND = _VERSION << 4 | _PROXY
_UNSPECIFIED = 0x00
_TCP4 = 0x11
_TCP6 = 0x21
_ADDRESS_BYTES = {_TCP4: 4, _TCP6: 16}
_FIXED = struct.Struct(">12sBBH")
_PORTS = struct.Struct(">HH")
_TLV = struct.Struct(">BH")


class ProxyHeaderError(ValueError):
    """The bytes are not a header that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header of ``size`` bytes says. Addresses are (canonical ip, port).

    They are None when the peer speaks for itself (LOCAL) or knows none. ``identity`` is the text of TLV 0xD0, None
    when there is none; it is worth what the peer is worth.
    """

    size: int
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None
    identity: str | None = None


def proxy_v2_header(source: tuple[str, int], destination: tuple[str, int], identity: str) -> bytes:
    """The header for a TCP connection; both addresses are written as IPv6 when either is."""
    addresses = [ipaddress.ip_address(source[0]), ipaddress.ip_address(destination[0])]
    family = _TCP4
    if any(address.version == 6 for address in addresses):
        family = _TCP6
        addresses = [
            address if address.version == 6 else ipaddress.ip_address(f"::ffff:{address}")
            for address in addresses
        ]
    body = b"".join(address.packed for address in addresses) + struct.pack(">HH", source[1], destination[1])
    value = identity.encode("ascii")
    body += struct.pack(">BH", TLV_SPIFFE, len(value)) + value
    return SIGNATURE + struct.pack(">BBH", _VERSION_COMMAND, family, len(body)) + body


def parse_proxy_v2(data: bytes) -> ProxyHeader | None:
    """Read the header at the beginning of a connection; None while more bytes are needed.

    TLVs of unknown types are skipped. Raises :class:`ProxyHeaderError` as soon as it cannot become a header: a wrong
    signature or version, a length above ``MAX_HEADER_BYTES``, lengths that do not add up, another transport than TCP.
    """
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise ProxyHeaderError("the connection does not begin with a PROXY protocol header")
    if len(data) < _FIXED.size:
        return None
    _, version_command, family, length = _FIXED.unpack_from(data)
    version, command = version_command >> 4, version_command & 0x0F
    if version != _VERSION or command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"version and command 0x{version_command:02x} are not known")
    size = _FIXED.size + length
    if size > MAX_HEADER_BYTES:
        raise ProxyHeaderError(f"a header of {size} bytes is longer than {MAX_HEADER_BYTES}")
    if len(data) < size:
        return None
    if command == _LOCAL or family == _UNSPECIFIED:
        return ProxyHeader(size)
    width = _ADDRESS_BYTES.get(family)
    if width is None:
        raise ProxyHeaderError(f"address family and transport 0x{family:02x} are not TCP over IP")
    tlvs = _FIXED.size + 2 * width + _PORTS.size
    if tlvs > size:
        raise ProxyHeaderError("the header is too short for its addresses")
    ports = _PORTS.unpack_from(data, tlvs - _PORTS.size)
    source, destination = (
        (canonical_ip(str(ipaddress.ip_address(data[at : at + width]))), port)
        for at, port in zip((_FIXED.size, _FIXED.size + width), ports, strict=True)
    )
    return ProxyHeader(size, source, destination, _identity(data[tlvs:size]))


def _identity(tlvs: bytes) -> str | None:
    """The value of TLV 0xD0, if there is one."""
    found: bytes | None = None
    at = 0
    while at < len(tlvs):
        if at + _TLV.size > len(tlvs):
            raise ProxyHeaderError("the last TLV is cut short")
        kind, length = _TLV.unpack_from(tlvs, at)
        at += _TLV.size
        if at + length > len(tlvs):
            raise ProxyHeaderError(f"TLV 0x{kind:02x} is longer than the header")
        if kind == TLV_SPIFFE:
            if found is not None:
                raise ProxyHeaderError("the client's identity is given twice")
            found = tlvs[at : at + length]
        at += length
    if found is None:
        return None
    if not found.isascii():
        raise ProxyHeaderError("the client's identity is not ASCII")
    return found.decode("ascii")
