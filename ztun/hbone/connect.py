"""CONNECT requests and answers as header lists (RFC 9113 section 8.5; headers as ztunnel sends them)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ztun.hbone.headers import Headers

MAX_AUTHORITY_BYTES = 512  # a DNS name of 253 bytes, brackets, port and ample slack


class ConnectRequest(NamedTuple):
    """What a peer asks for. Everything but ``authority`` is its claim, or None."""

    authority: str
    baggage: tuple[str, ...] = ()
    forwarded: str | None = None
    traceparent: str | None = None
    forwarded_network: str | None = None


class NotConnect(ValueError):
    """The request is not a CONNECT, or has no usable authority; the message says which."""


def connect_headers(
    authority: str, *, baggage: str, forwarded: str, traceparent: str
) -> list[tuple[bytes, bytes]]:
    """The request headers in ztunnel's order; no ``:scheme`` and no ``:path``."""
    headers = [(b":method", b"CONNECT"), (b":authority", authority.encode("ascii"))]
    if baggage:
        headers.append((b"baggage", baggage.encode("ascii")))
    headers.append((b"forwarded", forwarded.encode("ascii")))
    headers.append((b"traceparent", traceparent.encode("ascii")))
    return headers


def parse_request(headers: Headers) -> ConnectRequest:
    """Read a request's headers. Raises :class:`NotConnect`."""
    method = authority = forwarded = traceparent = network = None
    baggage: list[str] = []
    for name, value in headers:
        if name == b":method":
            method = value
        elif name == b":authority":
            authority = value
        elif name == b":protocol":
            raise NotConnect("extended CONNECT (RFC 8441) is not served")
        elif name == b"baggage":
            baggage.append(_text(value))
        elif name == b"forwarded":
            forwarded = _text(value)
        elif name == b"traceparent":
            traceparent = _text(value)
        elif name == b"x-forwarded-network":
            network = _text(value)
    if method != b"CONNECT":
        raise NotConnect(f"the method is {_text(method or b'missing')[:32]!r}, only CONNECT is served")
    if not authority or len(authority) > MAX_AUTHORITY_BYTES or not authority.isascii():
        raise NotConnect("the request has no usable :authority")
    return ConnectRequest(authority.decode("ascii"), tuple(baggage), forwarded, traceparent, network)


def parse_status(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The status of an answer; 0 when it has none that is a number."""
    for name, value in headers:
        if name == b":status":
            return int(value) if len(value) == 3 and value.isdigit() else 0
    return 0


def baggage_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The ``baggage`` lines of an answer: the destination in its own words."""
    return tuple(_text(value) for name, value in headers if name == b"baggage")


def status_headers(status: int, *, baggage: str = "") -> list[tuple[bytes, bytes]]:
    """An answer; a 200 may carry the destination's baggage."""
    headers = [(b":status", b"%d" % status)]
    if baggage:
        headers.append((b"baggage", baggage.encode("ascii")))
    return headers


def _text(value: bytes) -> str:
    """Header values may be any bytes (RFC 9110 section 5.5); what is not ASCII is shown, not trusted."""
    return value.decode("ascii", "backslashreplace")
