"""The PROXY protocol, version 2: the header that tells a proxy behind us who the client is.

Source: HAProxy's proxy-protocol.txt section 2.2; TLV type 0xD0 is Istio's, the client's SPIFFE identity.
"""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
TLV_SPIFFE = 0xD0
_VERSION_COMMAND = 0x21  # version 2, PROXY
_TCP4 = 0x11
_TCP6 = 0x21


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
