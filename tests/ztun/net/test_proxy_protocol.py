"""The PROXY protocol header: what is written can be read, and nothing else is taken for one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh.model import canonical_ip
from ztun.net.proxy_protocol import (
    MAX_HEADER_BYTES,
    SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    parse_proxy_v2,
    proxy_v2_header,
)

pytestmark = pytest.mark.unit

CLIENT, VIP = ("10.0.0.7", 41234), ("192.168.58.10", 19000)
IDENTITY = "spiffe://cluster.local/ns/default/sa/telnet-client"
FOUR = bytes([10, 0, 0, 7, 192, 168, 58, 10]) + struct.pack(">HH", 41234, 19000)

addresses = st.tuples(st.ip_addresses().map(lambda ip: canonical_ip(str(ip))), st.integers(0, 65535))
identities = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=2048)


def header(
    body: bytes, *, version_command: int = 0x21, family: int = 0x11, length: int | None = None
) -> bytes:
    return (
        SIGNATURE
        + struct.pack(">BBH", version_command, family, len(body) if length is None else length)
        + body
    )


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


@given(addresses, addresses, identities, st.binary(max_size=64))
def test_what_is_written_can_be_read(
    source: tuple[str, int], destination: tuple[str, int], identity: str, rest: bytes
) -> None:
    written = proxy_v2_header(source, destination, identity)
    assert parse_proxy_v2(written + rest) == ProxyHeader(len(written), source, destination, identity)


@given(addresses, addresses, identities, st.data())
def test_every_beginning_of_a_header_waits_for_more(
    source: tuple[str, int], destination: tuple[str, int], identity: str, data: st.DataObject
) -> None:
    written = proxy_v2_header(source, destination, identity)
    assert parse_proxy_v2(written[: data.draw(st.integers(0, len(written) - 1))]) is None


@given(st.binary(max_size=200))
def test_anything_at_all_is_a_header_or_an_error_or_unfinished(data: bytes) -> None:
    for text in (data, SIGNATURE + data, SIGNATURE + b"\x21\x11\x00\x40" + data):
        try:
            found = parse_proxy_v2(text)
        except ProxyHeaderError:
            continue
        assert found is None or found.size <= len(text)


@given(
    st.lists(st.tuples(st.integers(0, 0xCF) | st.integers(0xD1, 0xFF), st.binary(max_size=40)), max_size=8)
)
def test_tlvs_of_others_are_skipped(others: list[tuple[int, bytes]]) -> None:
    body = FOUR + b"".join(tlv(*one) for one in others)
    assert parse_proxy_v2(header(body)) == ProxyHeader(16 + len(body), CLIENT, VIP)
    body += tlv(0xD0, IDENTITY.encode())
    assert parse_proxy_v2(header(body)) == ProxyHeader(16 + len(body), CLIENT, VIP, IDENTITY)


@pytest.mark.parametrize(
    "body", [b"", FOUR, bytes(36)], ids=["nothing", "addresses", "bytes that would be addresses"]
)
@pytest.mark.parametrize(("version_command", "family"), [(0x20, 0x11), (0x20, 0x00), (0x21, 0x00)])
def test_a_peer_that_speaks_for_itself_names_nobody(version_command: int, family: int, body: bytes) -> None:
    text = header(body, version_command=version_command, family=family)
    assert parse_proxy_v2(text) == ProxyHeader(len(text))


def test_an_address_of_ipv4_in_ipv6_is_the_ipv4_address() -> None:
    written = proxy_v2_header(("10.0.0.7", 1), ("2001:db8::1", 2), "")
    found = parse_proxy_v2(written)
    assert found is not None
    assert found.source == ("10.0.0.7", 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not begin"),
        (b"PROXY TCP4 10.0.0.7 10.0.0.8 1 2\r\n", "does not begin"),
        (header(FOUR, version_command=0x11), "not known"),
        (header(FOUR, version_command=0x22), "not known"),
        (header(FOUR, family=0x12), "not TCP over IP"),
        (header(FOUR, family=0x31), "not TCP over IP"),
        (header(FOUR[:-1]), "too short"),
        (header(FOUR, family=0x21), "too short"),
        (header(b"", length=MAX_HEADER_BYTES), "longer than"),
        (header(b"", length=0xFFFF), "longer than"),
        (header(FOUR + b"\xd0"), "cut short"),
        (header(FOUR + b"\xd0\x00"), "cut short"),
        (header(FOUR + struct.pack(">BH", 0xD0, 5) + b"abcd"), "longer than the header"),
        (header(FOUR + struct.pack(">BH", 0x04, 0xFFFF)), "longer than the header"),
        (header(FOUR + tlv(0xD0, b"a") + tlv(0xD0, b"b")), "twice"),
        (header(FOUR + tlv(0xD0, b"spiffe://\xff")), "not ASCII"),
    ],
)
def test_what_cannot_become_a_header_is_refused_at_once(text: bytes, why: str) -> None:
    with pytest.raises(ProxyHeaderError, match=why):
        parse_proxy_v2(text)


def test_the_longest_header_is_read() -> None:
    body = FOUR + tlv(0x04, bytes(MAX_HEADER_BYTES - 16 - len(FOUR) - 3))
    assert parse_proxy_v2(header(body)) == ProxyHeader(MAX_HEADER_BYTES, CLIENT, VIP)
