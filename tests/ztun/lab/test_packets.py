"""Packets are read as they are, in whatever order they come, and what is not of a tunnel is not overlooked."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.lab.packets import (
    ACK,
    AHEAD_BYTES,
    ETH_P_IP,
    SYN,
    TCP,
    UDP,
    InOrder,
    Packet,
    PacketTap,
    read_packet,
)
from ztun.lab.process import LabError
from ztun.lab.tap import Watch

pytestmark = pytest.mark.unit

CLIENT, SERVER, STRANGER = "10.244.1.10", "10.244.2.10", "10.244.1.99"


def tcp(
    payload: bytes, ports: tuple[int, int] = (40000, 15008), sequence: int = 1, flags: int = ACK
) -> bytes:
    return struct.pack("!HHIIBBHHH", *ports, sequence, 0, 5 << 4, flags, 0, 0, 0) + payload


def ipv4(
    body: bytes, protocol: int = TCP, ends: tuple[str, str] = (CLIENT, SERVER), offset: int = 0
) -> bytes:
    source, destination = (ipaddress.IPv4Address(one).packed for one in ends)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, offset, 64, protocol, 0)
    return head + source + destination + body


def ipv6(body: bytes, protocol: int = TCP, length: int | None = None) -> bytes:
    ends = ipaddress.IPv6Address("fd00::1").packed + ipaddress.IPv6Address("fd00::2").packed
    return struct.pack("!IHBB", 6 << 28, len(body) if length is None else length, protocol, 64) + ends + body


def test_tcp_over_either_family() -> None:
    for data, ends in ((ipv4(tcp(b"data")), (CLIENT, SERVER)), (ipv6(tcp(b"data")), ("fd00::1", "fd00::2"))):
        packet = read_packet(data)
        assert packet == Packet(TCP, *ends, 40000, 15008, 1, ACK, b"data")
    assert str(read_packet(ipv6(tcp(b"")))) == "TCP [fd00::1]:40000 -> [fd00::2]:15008"


def test_padding_is_no_payload_and_offloaded_packets_have_no_length() -> None:
    padded = read_packet(ipv4(tcp(b"data")) + b"\0" * 6)
    assert padded is not None
    assert padded.payload == b"data"
    large = read_packet(ipv6(tcp(b"x" * 70_000), length=0))
    assert large is not None
    assert len(large.payload) == 70_000


def test_extension_headers_are_passed_over() -> None:
    packet = read_packet(ipv6(bytes([TCP, 0]) + b"\0" * 6 + tcp(b"data"), protocol=0))
    assert packet is not None
    assert (packet.protocol, packet.payload) == (TCP, b"data")


def test_a_later_fragment_has_no_ports() -> None:
    assert read_packet(ipv4(tcp(b"data"), offset=185)) == Packet(TCP, CLIENT, SERVER)


@pytest.mark.parametrize("data", [b"", b"\x45", ipv4(tcp(b""))[:30], ipv6(b"\x00")])
def test_what_is_cut_off_is_no_packet(data: bytes) -> None:
    assert read_packet(data) is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    read_packet(data)


@given(st.data())
def test_segments_in_any_order_repeated_and_overlapping_are_one_text(data: st.DataObject) -> None:
    text = data.draw(st.binary(min_size=1, max_size=300))
    first = data.draw(st.sampled_from([0, 7, (1 << 32) - 100, (1 << 32) - 1]))
    cuts = data.draw(st.lists(st.tuples(st.integers(0, 299), st.integers(1, 300)), max_size=8))
    pieces = [(at, text[at : at + length]) for at, length in cuts if at < len(text)]
    pieces += [(at, text[at : at + 50]) for at in range(0, len(text), 50)]
    reader, found = InOrder(), b""
    reader.feed(Packet(TCP, CLIENT, SERVER, 1, 2, first, SYN))
    for at, piece in data.draw(st.permutations(pieces)):
        found += reader.feed(Packet(TCP, CLIENT, SERVER, 1, 2, (first + 1 + at) % (1 << 32), ACK, piece))
    assert found == text


def test_a_gap_is_not_waited_for_without_end() -> None:
    reader = InOrder()
    reader.feed(Packet(TCP, CLIENT, SERVER, 1, 2, 0, SYN))
    block = b"x" * 65_536
    with pytest.raises(LabError, match="missing"):
        for number in range(AHEAD_BYTES // len(block) + 1):
            reader.feed(Packet(TCP, CLIENT, SERVER, 1, 2, 100 + number * len(block), ACK, block))


def watched(data: bytes, *, between_nodes: bool = True, secret: bytes = b"secret") -> Watch:
    def nowhere(_: Callable[[], socket.socket]) -> socket.socket:
        raise AssertionError("no socket is needed")

    tap, watch = PacketTap(nowhere, frozenset({STRANGER})), Watch((secret,))
    with tap.watches.watch(watch):
        tap.packet(data, ETH_P_IP, between_nodes=between_nodes)
    return watch


@pytest.mark.parametrize(
    ("data", "stray"),
    [
        (ipv4(tcp(b"hello", (40000, 9000))), f"TCP {CLIENT}:40000 -> {SERVER}:9000"),
        (ipv4(tcp(b"", (9000, 40000))), f"TCP {CLIENT}:9000 -> {SERVER}:40000"),
        (ipv4(struct.pack("!HHHH", 40000, 53, 8, 0), UDP), f"UDP {CLIENT}:40000 -> {SERVER}:53"),
        (ipv4(b"", 132), f"protocol 132 {CLIENT} -> {SERVER}"),
        (ipv4(tcp(b"x"), offset=185), f"TCP {CLIENT} -> {SERVER}"),
        (b"\x45", "1 bytes that are no packet"),
    ],
)
def test_everything_that_is_not_of_a_tunnel_is_told(data: bytes, stray: str) -> None:
    watch = watched(data)
    assert watch.strays == {stray}
    assert f"not in a tunnel: {stray}" in watch.faults


def test_plaintext_at_the_port_of_tunnels_is_not_taken_for_one() -> None:
    watch = watched(ipv4(tcp(b"GET / HTTP/1.1\r\n")))
    assert any("not a TLS record" in fault for fault in watch.faults)


def test_a_secret_is_found_in_any_packet() -> None:
    assert watched(ipv4(b"an answer that quotes a secret", 1)).readable == {b"secret"}


def test_strangers_and_housekeeping_are_no_strays() -> None:
    assert not watched(ipv4(tcp(b"hello", (40000, 9000)), ends=(STRANGER, SERVER))).strays
    assert not watched(ipv4(b"\x08\0\0\0", 1)).strays
    asks_its_resolver = ipv4(struct.pack("!HHHH", 40000, 53, 8, 0), UDP)
    assert not watched(asks_its_resolver, between_nodes=False).strays
