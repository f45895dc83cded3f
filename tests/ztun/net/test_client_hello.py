"""Server names are read from what real TLS clients send, in any chunking; anything else ends in one kind of error."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.net.client_hello import MAX_HELLO_BYTES, ClientHello, ClientHelloError, read_client_hello

pytestmark = pytest.mark.unit

NAME = st.from_regex(
    r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){0,4}", fullmatch=True
)


def hello_of(name: str | None, protocols: Sequence[str] = (), *, tls12: bool = False) -> bytes:
    """The first flight of the ssl module's client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def written(name: bytes | None, *, more: bytes = b"", kind: int = 0) -> bytes:
    """A ClientHello written out by hand, with a server name and more extensions."""
    extensions = more
    if name is not None:
        entry = bytes([kind]) + len(name).to_bytes(2) + name
        content = len(entry).to_bytes(2) + entry
        extensions = b"\x00\x00" + len(content).to_bytes(2) + content + more
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(extensions).to_bytes(2) + extensions
    return records(b"\x01" + len(body).to_bytes(3) + body, 2**14)


def records(message: bytes, size: int) -> bytes:
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in parts)


def incomplete(data: bytes) -> bool:
    return read_client_hello(data) is None


@pytest.mark.parametrize("tls12", [False, True])
def test_the_name_and_the_protocols_of_a_real_client_are_read(tls12: bool) -> None:
    data = hello_of("Db.Example.COM", ["h2", "http/1.1"], tls12=tls12)
    assert read_client_hello(data) == ClientHello("db.example.com", ("h2", "http/1.1"))


def test_a_client_without_a_name_has_none() -> None:
    assert read_client_hello(hello_of(None)) == ClientHello()


def test_a_hello_without_extensions_has_no_name() -> None:
    body = b"\x03\x01" + bytes(32) + b"\x00" + b"\x00\x02\x00\x05" + b"\x01\x00"
    assert read_client_hello(records(b"\x01" + len(body).to_bytes(3) + body, 100)) == ClientHello()


@given(NAME, st.integers(8, 600))
def test_every_prefix_is_incomplete_however_it_is_cut_into_records(name: str, size: int) -> None:
    data = written(name.encode())
    data = records(data[5:], size)
    assert all(incomplete(data[:end]) for end in range(len(data)))
    assert read_client_hello(data) == ClientHello(name)
    assert read_client_hello(data + b"and what follows") == ClientHello(name)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_do_worse_than_an_error(data: bytes) -> None:
    with suppress(ClientHelloError):
        read_client_hello(data)


@given(st.data())
def test_a_damaged_hello_never_does_worse_than_an_error(data: st.DataObject) -> None:
    raw = bytearray(hello_of("db.example.com", ["h2"]))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_client_hello(bytes(raw))
    except ClientHelloError:
        return
    assert found is None or found.server_name.isascii()


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x17\x03\x03",
    ],
    ids=["one letter", "http", "ssl 2", "empty record", "record too large", "application data"],
)
def test_what_is_not_tls_is_known_at_the_first_wrong_byte(data: bytes) -> None:
    with pytest.raises(ClientHelloError):
        read_client_hello(data)


def test_another_message_is_refused() -> None:
    with pytest.raises(ClientHelloError, match="not a ClientHello"):
        read_client_hello(b"\x16\x03\x03\x00\x01\x02")


@pytest.mark.parametrize(
    "name",
    [b"a\x00b.example", b"a b", b"-a.example", b"a..b", b".a", b"a.", b"x" * 64, b"\xc3\xa9.example", b"a\n"],
)
def test_a_name_that_is_no_dns_name_is_refused(name: bytes) -> None:
    with pytest.raises(ClientHelloError, match="DNS name"):
        read_client_hello(written(name))


def test_a_name_of_another_kind_is_no_host_name() -> None:
    assert read_client_hello(written(b"whatever", kind=7)) == ClientHello()


def test_a_repeated_extension_is_refused() -> None:
    again = written(b"b.example")[5 + 4 + 43 :]
    with pytest.raises(ClientHelloError, match="twice"):
        read_client_hello(written(b"a.example", more=again[again.index(b"\x00\x00") :]))


def test_a_hello_that_grows_without_end_is_refused() -> None:
    body = b"\x01" + (MAX_HELLO_BYTES + 1).to_bytes(3)
    with pytest.raises(ClientHelloError, match="bytes"):
        read_client_hello(records(body, 100))
    patient = records(b"\x01" + (MAX_HELLO_BYTES).to_bytes(3) + bytes(MAX_HELLO_BYTES), 2**14)
    assert incomplete(patient[: MAX_HELLO_BYTES - 1])
    with pytest.raises(ClientHelloError, match="larger"):
        read_client_hello(patient[:MAX_HELLO_BYTES])
    with pytest.raises(ClientHelloError, match="records"):
        read_client_hello(records(b"\x01" + (8000).to_bytes(3) + bytes(8000), 1))
