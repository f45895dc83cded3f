"""ZDS packets: known bytes, every value there and back, arbitrary bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.errors import ZdsError
from ztun.zds.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    AddWorkload,
    DelWorkload,
    Hello,
    KeepWorkload,
    Request,
    SnapshotSent,
    decode_ack,
    decode_hello,
    decode_request,
    encode_ack,
    encode_hello,
    encode_request,
)

pytestmark = pytest.mark.unit

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(AddWorkload, TEXT, TEXT, TEXT, TEXT),
    st.builds(KeepWorkload, TEXT),
    st.builds(DelWorkload, TEXT),
    st.just(SnapshotSent()),
)
# Written by hand from the field numbers of zds.proto, so that an error in the declaration shows.
GOLDEN: list[tuple[Request, bytes]] = [
    (
        AddWorkload("u-1", "web", "shop", "sa"),
        b"\x0a\x16" + b"\x0a\x03u-1" + b"\x12\x0f" + b"\x0a\x03web" + b"\x12\x04shop" + b"\x1a\x02sa",
    ),
    (AddWorkload("", "", "", ""), b"\x0a\x02\x12\x00"),
    (DelWorkload("u-1"), b"\x12\x05\x12\x03u-1"),
    (DelWorkload(""), b"\x12\x00"),
    (KeepWorkload("u-1"), b"\x2a\x05\x0a\x03u-1"),
    (KeepWorkload(""), b"\x2a\x00"),
    (SnapshotSent(), b"\x1a\x00"),
]


@pytest.mark.parametrize(("request_", "data"), GOLDEN)
def test_requests_are_these_bytes(request_: Request, data: bytes) -> None:
    assert encode_request(request_) == data
    assert decode_request(data) == request_


def test_hello_and_answers_are_these_bytes() -> None:
    assert encode_hello() == b"\x08\x01"
    assert decode_hello(b"\x08\x01") == Hello(1)
    assert decode_hello(b"") == Hello(0)
    assert decode_hello(b"\x08\x07") == Hello(7)  # a later version is the caller's to judge
    assert encode_ack() == b"\x0a\x00"
    assert encode_ack("no") == b"\x0a\x04\x0a\x02no"
    assert decode_ack(b"\x0a\x00") == Ack("")
    assert decode_ack(b"\x0a\x04\x0a\x02no") == Ack("no")


@given(REQUESTS)
def test_requests_survive_the_journey(request_: Request) -> None:
    assert decode_request(encode_request(request_)) == request_


@given(TEXT)
def test_answers_survive_the_journey(error: str) -> None:
    assert decode_ack(encode_ack(error)) == Ack(error)


@given(st.text(max_size=5000))
def test_an_answer_always_fits_into_a_packet(error: str) -> None:
    data = encode_ack(error)
    assert len(data) <= MAX_MESSAGE_BYTES
    read = decode_ack(data).error
    assert error.encode(errors="replace").decode().startswith(read)
    assert bool(read) == bool(error)


@given(st.binary(max_size=200))
@pytest.mark.parametrize("decode", [decode_request, decode_ack, decode_hello])
def test_arbitrary_bytes_are_read_or_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(ZdsError):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",  # no payload
        b"\x22\x00",  # field 4, which no version has used
        b"\x0a\x05\x0a\x03u-",  # cut
        b"\x12\x04\x12\x02\xff\xfe",  # no UTF-8
        b"\xff\xff",
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ZdsError) as raised:
        decode_request(data)
    assert raised.value.code == "zds_malformed"
    assert raised.value.hint


def test_an_add_without_its_workload_is_told_apart() -> None:
    with pytest.raises(ZdsError) as raised:
        decode_request(b"\x0a\x05\x0a\x03u-1")
    assert raised.value.code == "zds_no_workload_info"


def test_an_answer_without_ack_is_refused() -> None:
    with pytest.raises(ZdsError, match="no answer"):
        decode_ack(b"")


def test_unknown_fields_are_ignored() -> None:
    assert decode_request(b"\x2a\x07\x0a\x03u-1\x48\x01") == KeepWorkload("u-1")


def test_a_request_that_no_proxy_would_read_is_not_made() -> None:
    with pytest.raises(ZdsError) as raised:
        encode_request(AddWorkload("u", "n" * MAX_MESSAGE_BYTES, "default", "sa"))
    assert raised.value.code == "zds_too_long"
