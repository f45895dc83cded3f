"""CONNECT requests and answers as header lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.hbone.connect import (
    MAX_AUTHORITY_BYTES,
    ConnectRequest,
    NotConnect,
    baggage_of,
    connect_headers,
    parse_request,
    parse_status,
    status_headers,
)

pytestmark = pytest.mark.unit

METHOD = (b":method", b"CONNECT")
AUTHORITY = (b":authority", b"10.0.0.5:9000")


def test_a_request_has_the_headers_of_ztunnel_in_its_order() -> None:
    assert connect_headers(
        "[2001:db8::1]:80",
        baggage="k8s.namespace.name=default",
        forwarded='for="10.0.0.1:5"',
        traceparent="00-1-2-00",
    ) == [
        (b":method", b"CONNECT"),
        (b":authority", b"[2001:db8::1]:80"),
        (b"baggage", b"k8s.namespace.name=default"),
        (b"forwarded", b'for="10.0.0.1:5"'),
        (b"traceparent", b"00-1-2-00"),
    ]


def test_what_is_written_can_be_read() -> None:
    headers = connect_headers("echo.default.svc:9000", baggage="", forwarded="for=a", traceparent="t")
    assert parse_request(headers) == ConnectRequest("echo.default.svc:9000", (), "for=a", "t")


def test_every_field_of_a_request() -> None:
    headers = [
        METHOD,
        AUTHORITY,
        (b"baggage", b"a=1"),
        (b"baggage", b"b=2"),
        (b"x-forwarded-network", b"remote"),
        (b"x-istio-source", b"waypoint"),
    ]
    assert parse_request(headers) == ConnectRequest(
        "10.0.0.5:9000", ("a=1", "b=2"), forwarded_network="remote"
    )


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [AUTHORITY],
        [METHOD],
        [(b":method", b"GET"), AUTHORITY],
        [(b":method", b"connect"), AUTHORITY],
        [METHOD, (b":authority", b"")],
        [METHOD, (b":authority", b"a" * (MAX_AUTHORITY_BYTES + 1))],
        [METHOD, (b":authority", "bücher:80".encode())],
        [METHOD, AUTHORITY, (b":protocol", b"websocket")],
    ],
)
def test_what_is_no_request_for_a_tunnel(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotConnect):
        parse_request(headers)


def test_values_that_are_not_text_are_shown_escaped() -> None:
    request = parse_request([METHOD, AUTHORITY, (b"forwarded", b"host=\xff\xfe")])
    assert request.forwarded == "host=\\xff\\xfe"


@given(st.lists(st.tuples(st.sampled_from([b":method", b":authority", b"baggage", b"x"]), st.binary())))
def test_any_header_list_is_a_request_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        request = parse_request(headers)
    except NotConnect:
        return
    assert request.authority.isascii()
    assert 0 < len(request.authority) <= MAX_AUTHORITY_BYTES


@pytest.mark.parametrize(
    ("value", "status"), [(b"200", 200), (b"503", 503), (b"", 0), (b"20", 0), (b"2000", 0), (b"2x0", 0)]
)
def test_the_status_of_an_answer(value: bytes, status: int) -> None:
    assert parse_status([(b"server", b"envoy"), (b":status", value)]) == status


def test_an_answer_without_a_status() -> None:
    assert parse_status([(b"server", b"envoy")]) == 0


def test_an_answer_carries_the_destination_in_its_own_words() -> None:
    assert status_headers(503) == [(b":status", b"503")]
    answer = status_headers(200, baggage="service.name=echo")
    assert baggage_of(answer) == ("service.name=echo",)
    assert baggage_of(status_headers(200)) == ()
