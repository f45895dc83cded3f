"""Header blocks: what is written can be read, by us and by ``hpack``, and whatever comes is fields or an error."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from ztun.hbone import headers as headers_module
from ztun.hbone.headers import HeaderBlockError, HeaderDecoder, HeaderListTooLarge, encode_headers

pytestmark = pytest.mark.unit

fields = st.lists(
    st.tuples(
        st.sampled_from([b":method", b":authority", b":status", b"baggage", b"forwarded", b"x-new"]),
        st.one_of(st.sampled_from([b"CONNECT", b"200", b"GET", b""]), st.binary(max_size=400)),
    ),
    min_size=1,
    max_size=20,
)


def decoder(*, stateless: bool) -> HeaderDecoder:
    made = HeaderDecoder(max_size=16_384, max_fields=64)
    if stateless:
        made.table_refused()
    return made


@given(fields, st.booleans())
@settings(deadline=None)
def test_what_is_written_can_be_read(wanted: list[tuple[bytes, bytes]], stateless: bool) -> None:
    block = encode_headers(wanted)
    assert Decoder().decode(block, raw=True) == wanted
    assert decoder(stateless=stateless).decode(block) == wanted


@given(st.lists(fields, max_size=4), st.booleans())
@settings(deadline=None)
def test_blocks_of_another_encoder_are_read(blocks: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    """With its table until ours is refused, and without it afterwards."""
    encoder, ours = Encoder(), decoder(stateless=False)
    for wanted in blocks:
        assert ours.decode(encoder.encode(wanted, huffman=huffman)) == wanted
    ours.table_refused()
    encoder.header_table_size = 0
    for wanted in blocks:
        assert ours.decode(encoder.encode(wanted, huffman=huffman)) == wanted


@given(st.binary(max_size=200), st.booleans())
@settings(deadline=None)
def test_any_block_is_fields_or_an_error(block: bytes, stateless: bool) -> None:
    try:
        read = decoder(stateless=stateless).decode(block)
    except (HeaderBlockError, HeaderListTooLarge):
        return
    assert all(isinstance(name, bytes) and isinstance(value, bytes) for name, value in read)


def test_large_strings_are_not_remembered() -> None:
    before = headers_module._huffman_cached.cache_info().currsize
    for number in range(50):
        block = Encoder().encode([(b"baggage", b"%d" % number * 2_000)], huffman=True)
        decoder(stateless=True).decode(block)
    assert headers_module._huffman_cached.cache_info().currsize - before <= 1
