"""Headers that describe the source: what is written, and that reading never fails."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.mesh.baggage import (
    MAX_BAGGAGE_BYTES,
    MAX_VALUE_BYTES,
    NOTHING,
    Baggage,
    encode_baggage,
    encode_forwarded,
    new_traceparent,
    parse_baggage,
    parse_forwarded_host,
    parse_traceparent,
)
from ztun.mesh.model import Locality, Workload, WorkloadType

pytestmark = pytest.mark.unit

WORKLOAD = Workload(
    "Kubernetes//Pod/ns/client-1",
    "client-1",
    "ns",
    workload_name="client",
    workload_type=WorkloadType.DEPLOYMENT,
    canonical_name="client-app",
    canonical_revision="v1",
    locality=Locality("r", "z", "s"),
)


def test_baggage_has_the_order_and_keys_of_ztunnel() -> None:
    assert encode_baggage(WORKLOAD) == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.deployment.name=client,"
        "service.name=client-app,service.version=v1,cloud.region=r,cloud.availability_zone=z"
    )


def test_absent_values_are_omitted() -> None:
    assert encode_baggage(Workload("u", "n", "ns", cluster_id="")) == "k8s.namespace.name=ns"


def test_values_that_could_not_be_read_back_are_left_out() -> None:
    workload = Workload("u", "n", "ns", cluster_id="a,b=c", workload_name="a=b", canonical_name="ü\r\nx")
    assert encode_baggage(workload) == "k8s.namespace.name=ns"


def test_full_baggage_round_trips() -> None:
    assert parse_baggage([encode_baggage(WORKLOAD)]) == Baggage(
        "Kubernetes", "ns", "client", WorkloadType.DEPLOYMENT, "client-app", "v1", Locality("r", "z")
    )


def test_several_lines_empty_values_and_unknown_keys() -> None:
    found = parse_baggage(["k8s.cluster.name=c, k8s.namespace.name=", "x=y,k8s.job.name=j", ",=,,"])
    assert found == Baggage(cluster_id="c", workload_name="j", workload_type=WorkloadType.JOB)


def test_no_header_is_empty_baggage() -> None:
    assert parse_baggage([]) == Baggage()


def test_too_much_baggage_is_no_baggage() -> None:
    assert parse_baggage(["k8s.cluster.name=c", "x" * MAX_BAGGAGE_BYTES]) == NOTHING


def test_a_value_that_no_name_has_is_absent() -> None:
    longest = "x" * MAX_VALUE_BYTES
    assert parse_baggage([f"service.name={longest},service.version={longest}x"]) == Baggage(
        canonical_name=longest
    )


@given(st.lists(st.text(max_size=100), max_size=5))
def test_reading_baggage_never_fails(lines: list[str]) -> None:
    parse_baggage(lines)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_what_is_written_is_read_or_left_out(cluster: str, name: str, revision: str) -> None:
    workload = Workload("u", "n", "ns", cluster_id=cluster, workload_name=name, canonical_revision=revision)
    header = encode_baggage(workload)
    assert header.isascii()
    assert "\n" not in header
    found = parse_baggage([header])
    assert found.cluster_id in ("", cluster)
    assert found.workload_name in ("", name)
    assert found.canonical_revision in ("", revision)


@pytest.mark.parametrize(
    ("ip", "port", "host", "header"),
    [
        ("10.0.0.1", 80, None, 'for="10.0.0.1:80"'),
        ("::1", 80, None, 'for="[::1]:80"'),
        ("10.0.0.1", 80, "a.b.svc.cluster.local", 'for="10.0.0.1:80";host=a.b.svc.cluster.local'),
        ("10.0.0.1", 80, "a;b", 'for="10.0.0.1:80"'),
    ],
)
def test_forwarded_is_written_as_ztunnel_does(ip: str, port: int, host: str | None, header: str) -> None:
    assert encode_forwarded(ip, port, host) == header


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ('for="10.0.0.1:80";host=a.b', "a.b"),
        ('for="10.0.0.1:80"; host="A.b"', "a.b"),
        ("host=a.b;host=c.d", "a.b"),
        ("for=x", None),
        ("host=", None),
        ('host=""', None),
        ('host="', None),
        ("host=a b", None),
        ("hosts=a.b", None),
        ("", None),
        ("host=ü.b", None),
    ],
)
def test_forwarded_host_is_read(header: str, host: str | None) -> None:
    assert parse_forwarded_host(header) == host


@given(st.text(max_size=200))
def test_reading_forwarded_and_traceparent_never_fails(text: str) -> None:
    parse_forwarded_host(text)
    parse_traceparent(text)


def test_new_traceparents_are_valid_and_differ() -> None:
    rng = random.Random(7)
    made = {new_traceparent(rng) for _ in range(100)}
    assert len(made) == 100
    assert all(parse_traceparent(one) == one and len(one) == 55 for one in made)


@pytest.mark.parametrize(
    "text",
    [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0" * 55,
        "-" * 55,
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
        "",
    ],
)
def test_other_traceparents_are_refused(text: str) -> None:
    assert parse_traceparent(text) is None
