"""The kernel's table of connections: read as it is printed, and as it is."""

from __future__ import annotations

import socket
import sys

import pytest

from ztun.lab.established import peers_of, read_peers

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0A02F40A:2328 0B01F40A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0A02F40A:2328 0C01F40A:9C41 08 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
   3: 0B01F40A:9C40 0A02F40A:2328 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr
   0: 4402000000FD00000200000001000000:2328 440200FD01000000000000000B000000:9C40 01 0:0 0 0 0 0 0
   1: 0000000000000000FFFF00000A02F40A:2328 0000000000000000FFFF00000B01F40A:9C40 01 0:0 0 0 0 0 0
"""


@pytest.mark.unit
@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is of a little-endian machine")
def test_only_who_is_connected_now_counts() -> None:
    assert list(read_peers(TCP, 9000)) == ["10.244.1.11"]
    assert list(read_peers(TCP6, 9000)) == ["fd00:244:0:1::b", "10.244.1.11"]
    assert not list(read_peers(TCP, 9001))


@pytest.mark.net
@pytest.mark.parametrize(("family", "ip"), [(socket.AF_INET, "127.0.0.7"), (socket.AF_INET6, "::1")])
def test_a_connection_shows_until_it_ends(family: socket.AddressFamily, ip: str) -> None:
    with socket.create_server((ip, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert peers_of(port) == set()
        with socket.create_connection((ip, port), source_address=(ip, 0)):
            assert peers_of(port) == {ip}
        assert peers_of(port) == set()
