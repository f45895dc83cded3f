"""Where a redirected connection was going before the kernel sent it to us."""

from __future__ import annotations

import socket
import struct

from ztun.mesh.model import canonical_ip

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; the same number as IP6T_SO_ORIGINAL_DST
_SOL_IPV6 = 41
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def original_destination(sock: socket.SocketType) -> tuple[str, int]:
    """The address (ip, port) the client dialled; the socket's own local address when nothing redirected it.

    An IPv4-mapped IPv6 address is given as IPv4.
    """
    try:
        data = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        port, packed = _SOCKADDR_IN.unpack(data)
        return socket.inet_ntop(socket.AF_INET, packed), port
    except OSError:
        pass
    if sock.family == socket.AF_INET6:
        try:
            data = sock.getsockopt(_SOL_IPV6, SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(data)
            return canonical_ip(socket.inet_ntop(socket.AF_INET6, packed)), port
        except OSError:
            pass
    local = sock.getsockname()
    return canonical_ip(local[0]), int(local[1])
