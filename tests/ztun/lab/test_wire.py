"""What the tap makes of bytes: real TLS in any chunking, and everything that is not TLS 1.3."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ztun.lab.wire import MAX_HELLO_BYTES, RecordReader, ServerHello, read_server_hello

pytestmark = pytest.mark.unit


def tls_bytes(files: tuple[Path, Path], version: ssl.TLSVersion) -> tuple[bytes, bytes, str]:
    """(client to server, server to client, cipher) of a session in which both sides send a line."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*files)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.maximum_version = server_context.maximum_version = version
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(down, client_out := ssl.MemoryBIO(), server_side=False)
    server = server_context.wrap_bio(up, server_out := ssl.MemoryBIO(), server_side=True)
    sent_up = sent_down = b""

    def carry() -> None:
        nonlocal sent_up, sent_down
        up.write(data := client_out.read())
        sent_up += data
        down.write(data := server_out.read())
        sent_down += data

    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            carry()
    client.write(b"a line that nobody on the path may read\n")
    server.write(b"and its answer\n")
    carry()
    cipher = client.cipher()
    assert cipher is not None
    return sent_up, sent_down, cipher[0]


def read(data: bytes, step: int = 1 << 20) -> RecordReader:
    reader = RecordReader()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    return reader


@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
def test_tls_1_3_is_recognised_in_any_chunking(server_files: tuple[Path, Path], step: int) -> None:
    up, down, cipher = tls_bytes(server_files, ssl.TLSVersion.TLSv1_3)
    sides = [read(up, step), read(down, step)]
    assert [side.broken for side in sides] == ["", ""]
    assert all(side.application_data_bytes for side in sides)
    assert read_server_hello(sides[1].hello) == ServerHello("TLS 1.3", cipher)
    assert read_server_hello(sides[0].hello) is None


def test_an_older_tls_is_told_from_its_hello(server_files: tuple[Path, Path]) -> None:
    _, down, _ = tls_bytes(server_files, ssl.TLSVersion.TLSv1_2)
    hello = read_server_hello(read(down).hello)
    assert hello is not None
    assert hello.version == "TLS 1.2"


@pytest.mark.parametrize(
    "plain", [b"hello test\n", b"CONNECT x HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", bytes(64)]
)
def test_plain_text_is_no_tls(plain: bytes) -> None:
    assert read(plain).broken.startswith("not a TLS record")


def test_plain_text_after_a_handshake_is_found(server_files: tuple[Path, Path]) -> None:
    up, _, _ = tls_bytes(server_files, ssl.TLSVersion.TLSv1_3)
    assert read(up + b"hello test\n").broken.startswith("not a TLS record")
    assert read(up + b"\x15\x03\x03\x00\x02\x02\x28").broken.endswith("has type 21")


@given(st.binary(max_size=300), st.integers(min_value=1, max_value=7))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_bytes_never_raise_and_keep_no_memory(data: bytes, step: int) -> None:
    reader = read(data * 20, step)
    assert len(reader.hello) <= MAX_HELLO_BYTES
    read_server_hello(data)
    read_server_hello(b"\x02" + data)
