"""``host:port`` text: what is read, and that nothing else is."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh import address
from ztun.mesh.address import AddressError, is_hostname, parse_host_port

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "host", "port", "is_ip"),
    [
        ("10.0.0.1:80", "10.0.0.1", 80, True),
        ("[2001:DB8::1]:65535", "2001:db8::1", 65535, True),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1", 80, True),
        ("Echo.default.svc.cluster.local:19000", "echo.default.svc.cluster.local", 19000, False),
        ("localhost:1", "localhost", 1, False),
        ("_tcp.a-b.example:1", "_tcp.a-b.example", 1, False),
    ],
)
def test_reads(text: str, host: str, port: int, is_ip: bool) -> None:
    parsed = parse_host_port(text)
    assert (parsed.host, parsed.port, parsed.is_ip) == (host, port, is_ip)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:080",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        "10.0.0.1: 80",
        "10.0.0.1:80 ",
        "10.0.0.1:٨٠",
        "10.0.0.01:80",
        "010.0.0.1:80",
        "10.0.1:80",
        "167772161:80",
        "0x7f000001:80",
        "0x7f.1:80",
        "1.2.3.4.5:80",
        "::1:80",
        "[::1:80",
        "::1]:80",
        "[::1]80",
        "[10.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%25eth0]:80",
        "[echo]:80",
        "[]:80",
        "user@echo:80",
        "echo/path:80",
        "http://echo:80",
        "e cho:80",
        "echo\x00:80",
        "echo\r\nx:80",
        "-echo:80",
        "echo-.x:80",
        "a..b:80",
        "echo.:80",
        "ünïcode:80",
        f"{'a' * 64}:80",
        f"{'a.' * 127}a:80",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(AddressError):
        parse_host_port(text)


@given(st.text(max_size=80) | st.from_regex(r"[\[\]:.%0-9a-fxX@/ -]{0,50}", fullmatch=True))
def test_only_address_errors_and_what_is_read_is_canonical(text: str) -> None:
    try:
        parsed = parse_host_port(text)
    except AddressError:
        return
    assert 1 <= parsed.port <= 65535
    assert parse_host_port(str(parsed)) == parsed
    if parsed.is_ip:
        assert str(ipaddress.ip_address(parsed.host)) == parsed.host
    else:
        assert is_hostname(parsed.host)
        assert parsed.host == parsed.host.lower()


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_round_trips(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    parsed = parse_host_port(text)
    mapped = getattr(ip, "ipv4_mapped", None)
    assert ipaddress.ip_address(parsed.host) == (mapped or ip)
    assert parsed.port == port


def test_what_is_too_long_for_a_name_is_not_remembered() -> None:
    """It may come from a peer, which could fill thousands of places with it."""
    known = address._is_hostname.cache_info()
    assert not is_hostname("a." * 30_000)
    assert address._is_hostname.cache_info() == known
