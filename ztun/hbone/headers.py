"""Header blocks of CONNECT requests and answers (HPACK, RFC 7541).

We advertise a dynamic table of size 0. Once the peer has acknowledged that, its blocks depend on nothing that came
before, and a block is read by looking at its few fields; until then the ``hpack`` package, which keeps the table,
reads it. What we write never touches the peer's table. Both cost a tenth of a general codec, on every connection.

The checks are those of RFC 9113 section 8.2; a block that fails them makes its stream malformed (section 8.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

FIELD_OVERHEAD_BYTES = 32  # RFC 9113 section 10.5.1: what each field adds to the size of a list
_STATIC = HeaderTable.STATIC_TABLE
_STATIC_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, start=1)))}
_STATIC_FIELDS = {field: index for index, field in reversed(list(enumerate(_STATIC, start=1)))}
_SIZE_UPDATE = 0x20
_LONG_STRING = 0x7F  # from here on the length has more bytes, or the string is in Huffman code
_CACHED_BLOCK_BYTES = 2048  # of each peer at most two blocks are kept
_CACHED_STRING_BYTES = (
    256  # larger ones are rare, and what a peer sends must not fill the cache with megabytes
)
_FRESH_FIELDS = frozenset({b"forwarded", b"traceparent"})  # new with each connection; the others repeat
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_CONNECTION_FIELDS = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})


class HeaderBlockError(Exception):
    """The block cannot be decoded: an error of the connection (COMPRESSION_ERROR)."""


class HeaderListTooLarge(Exception):
    """The decoded list is larger than we advertise, or has too many fields."""


class MalformedHeaders(Exception):
    """The fields break the rules of HTTP/2: an error of the stream."""


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of literal fields without indexing, or of static ones."""
    return b"".join([_field(name, value) for name, value in headers])


def _field(name: bytes, value: bytes) -> bytes:
    if name in _FRESH_FIELDS:
        return _name(name) + _string(value)
    return _repeated_field(name, value)


@lru_cache(maxsize=1024)
def _repeated_field(name: bytes, value: bytes) -> bytes:
    static = _STATIC_FIELDS.get((name, value))
    return bytes((0x80 | static,)) if static is not None else _name(name) + _string(value)


@lru_cache(maxsize=256)
def _name(name: bytes) -> bytes:
    index = _STATIC_NAMES.get(name)
    return _integer(index, 4) if index is not None else b"\x00" + _string(name)


def _string(value: bytes) -> bytes:
    return (bytes((len(value),)) if len(value) < 0x7F else _integer(len(value), 7)) + value


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541 section 5.1, with zero flag bits."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((value,))
    encoded = bytearray((limit,))
    value -= limit
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class HeaderDecoder:
    """Reads the blocks of one peer. ``max_size`` bounds the decoded list, ``max_fields`` its length."""

    __slots__ = ("_before", "_decoder", "_known", "_max_fields", "_max_size", "_stateless")

    def __init__(self, *, max_size: int, max_fields: int) -> None:
        self._decoder = Decoder(max_header_list_size=max_size)
        self._max_size = max_size
        self._max_fields = max_fields
        self._stateless = False
        self._before = _Parsed(b"", (), ())
        self._known = self._before

    def table_refused(self) -> None:
        """The peer has acknowledged that our dynamic table has size 0."""
        self._stateless = True
        self._decoder.max_allowed_table_size = 0

    def decode(self, block: bytes | bytearray) -> Headers:
        """The fields. Raises :class:`HeaderBlockError` and :class:`HeaderListTooLarge`."""
        if self._stateless and block and block[0] & 0xE0 != _SIZE_UPDATE:
            fields = self._read(bytes(block))
        else:
            fields = self._decode_stateful(bytes(block))
        if len(fields) > self._max_fields:
            raise HeaderListTooLarge(f"more than {self._max_fields} header fields")
        return fields

    def _decode_stateful(self, block: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise HeaderListTooLarge(f"a header list of more than {self._max_size} bytes") from error
        except HPACKError as error:
            raise HeaderBlockError(str(error) or type(error).__name__) from error

    def _read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The fields of a block that depends on no other.

        Connections between the same two workloads have blocks that begin alike; the part that the last two had in
        common is not read again.
        """
        known = self._known if block.startswith(self._known.block) else _Parsed(b"", (), ())
        fields = list(known.fields)
        ends = list(known.ends)
        position, size = ends[-1] if ends else (0, 0)
        end = len(block)
        try:
            while position < end:
                first = block[position]
                if first & 0x80:
                    index, position = _read_integer(block, position, 7)
                    field = _static(index)
                elif first & 0xE0 == _SIZE_UPDATE:
                    raise HeaderBlockError("a table size update behind a field")
                else:
                    if first:
                        index, position = _read_integer(block, position, 6 if first & 0x40 else 4)
                    else:
                        index, position = 0, position + 1
                    if index:
                        name = _static(index)[0]
                    else:
                        name, position = _read_string(block, position)
                    value, position = _read_string(block, position)
                    field = (name, value)
                size += len(field[0]) + len(field[1]) + FIELD_OVERHEAD_BYTES
                if size > self._max_size:
                    raise HeaderListTooLarge(f"a header list of more than {self._max_size} bytes")
                fields.append(field)
                ends.append((position, size))
        except IndexError:
            raise HeaderBlockError("the block ends inside a field") from None
        if not known.ends and len(block) <= _CACHED_BLOCK_BYTES:
            self._learn(_Parsed(block, tuple(fields), tuple(ends)))
        return fields

    def _learn(self, parsed: _Parsed) -> None:
        """Keep what this block and the one before have in common, up to the end of a field."""
        self._known = parsed.common(self._before)
        self._before = parsed


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A block, its fields, and for each field (position behind it, size of the list up to it)."""

    block: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    ends: tuple[tuple[int, int], ...]

    def common(self, other: _Parsed) -> _Parsed:
        """The fields that both begin with."""
        count = 0
        for (position, _), (theirs, _) in zip(self.ends, other.ends, strict=False):
            if position != theirs or self.block[:position] != other.block[:position]:
                break
            count += 1
        end = self.ends[count - 1][0] if count else 0
        return _Parsed(self.block[:end], self.fields[:count], self.ends[:count])


def _static(index: int) -> tuple[bytes, bytes]:
    if not 0 < index <= len(_STATIC):
        raise HeaderBlockError(f"index {index} is not in the table")
    return _STATIC[index - 1]


def _read_integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value = block[position] & limit
    position += 1
    if value < limit:
        return value, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 28:  # no length or index of ours needs more than 32 bits
            raise HeaderBlockError("an integer is too long")


def _read_string(block: bytes, position: int) -> tuple[bytes, int]:
    length = block[position]
    if length < _LONG_STRING:
        start = position + 1
        end = start + length
        if end > len(block):
            raise HeaderBlockError("the block ends inside a string")
        return block[start:end], end
    huffman = length & 0x80
    length, position = _read_integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise HeaderBlockError("the block ends inside a string")
    text = block[position:end]
    if huffman:
        text = _huffman_cached(text) if length <= _CACHED_STRING_BYTES else _huffman(text)
    return text, end


@lru_cache(maxsize=1024)
def _huffman_cached(text: bytes) -> bytes:
    return _huffman(text)


def _huffman(text: bytes) -> bytes:
    try:
        return bytes(decode_huffman(text))
    except HPACKError as error:
        raise HeaderBlockError("a string is not valid Huffman code") from error


def check_request(headers: Headers) -> None:
    """Raises :class:`MalformedHeaders` for a request that RFC 9113 sections 8.2, 8.3 and 8.5 call malformed."""
    pseudo = _check_fields(headers, _REQUEST_PSEUDO)
    if b":method" not in pseudo:
        raise MalformedHeaders("a request without :method")
    if pseudo[b":method"] == b"CONNECT":
        if b":protocol" not in pseudo and (b":scheme" in pseudo or b":path" in pseudo):
            raise MalformedHeaders("CONNECT with :scheme or :path")
        if not pseudo.get(b":authority"):
            raise MalformedHeaders("CONNECT without :authority")
    elif not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise MalformedHeaders("a request without :scheme or :path")


def check_response(headers: Headers) -> int:
    """The status of a response; raises :class:`MalformedHeaders`."""
    pseudo = _check_fields(headers, frozenset({b":status"}))
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit():
        raise MalformedHeaders("a response without a :status of three digits")
    return int(status)


@lru_cache(maxsize=256)
def _is_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None


def _check_fields(headers: Headers, allowed: frozenset[bytes]) -> dict[bytes, bytes]:
    # looked for in all values at once: half the cost of a request's checks was looking into each
    values = b"".join([value for _, value in headers])
    if b"\x00" in values or b"\r" in values or b"\n" in values:
        raise MalformedHeaders("a field value with characters that HTTP/2 does not allow")
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in headers:
        if not _is_name(name):
            raise MalformedHeaders("a field name with characters that HTTP/2 does not allow")
        if value != value.strip(b" \t"):
            raise MalformedHeaders("a field value with a space at its start or end")
        if name[0] == 0x3A:
            if regular or name not in allowed or name in pseudo:
                raise MalformedHeaders("a pseudo-header field that is late, unknown or repeated")
            pseudo[name] = value
            continue
        regular = True
        if name in _CONNECTION_FIELDS or (name == b"te" and value != b"trailers"):
            raise MalformedHeaders("a field that belongs to HTTP/1 connections")
    return pseudo
