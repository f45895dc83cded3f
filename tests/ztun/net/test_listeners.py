"""Who else may have the address of a listener."""

from __future__ import annotations

import socket

import pytest

from tests.peers.addresses import free_port
from ztun.net.dial import SocketOptions
from ztun.net.listeners import ORDINARY, Listening, bind

pytestmark = pytest.mark.net

IP = "127.0.0.1"


@pytest.mark.parametrize("how", [ORDINARY, Listening(port_reuse=True)], ids=["ordinary", "shared by proxies"])
def test_datagrams_cannot_be_taken_over_with_address_reuse(how: Listening) -> None:
    """Which is open to every user; the last one bound would get them all."""
    port = free_port(IP)
    with (
        bind(IP, port, SocketOptions(), purpose="DNS", how=how, kind=socket.SOCK_DGRAM),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief,
    ):
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind((IP, port))


def test_a_second_proxy_may_share_datagrams() -> None:
    port = free_port(IP)
    how = Listening(port_reuse=True)
    for_dns = {"purpose": "DNS", "how": how, "kind": socket.SOCK_DGRAM}
    with bind(IP, port, SocketOptions(), **for_dns), bind(IP, port, SocketOptions(), **for_dns) as second:
        assert second.getsockname() == (IP, port)
