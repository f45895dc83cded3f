"""Bytes to questions, answers to bytes; and no bytes at all that could do harm."""

from __future__ import annotations

import random

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ztun.dns.directory import CLIENT, snapshot
from ztun.dns.local import answer_locally
from ztun.dns.messages import (
    MAX_QUERY_BYTES,
    BadQuery,
    Query,
    answer,
    belongs,
    failure,
    read_query,
    shortened,
    udp_room,
)
from ztun.dns.zone import ZoneOptions

pytestmark = pytest.mark.unit

MESH = snapshot()


def question(name: str = "web.app", rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **options).to_wire()  # type: ignore[arg-type]


def read(wire: bytes) -> dns.message.Message:
    return dns.message.from_wire(wire)


def served(wire: bytes, *, udp: bool = True) -> dns.message.Message | None:
    found = answer_locally(
        read_query(wire), MESH, CLIENT, rng=random.Random(1), options=ZoneOptions(), udp=udp
    )
    return read(found.wire) if found is not None else None


def refused(wire: bytes) -> bytes:
    with pytest.raises(BadQuery) as caught:
        read_query(wire)
    return caught.value.reply


class TestAnswers:
    @pytest.mark.parametrize("asked", ["WeB.aPp", "web.app.svc.CLUSTER.local", "web"])
    def test_the_owner_is_the_name_as_it_was_asked(self, asked: str) -> None:
        reply = served(question(asked))
        assert reply is not None
        assert reply.rcode() == dns.rcode.NOERROR
        assert reply.flags & dns.flags.AA
        assert reply.flags & dns.flags.RA
        (records,) = reply.answer
        assert records.name.to_text() == reply.question[0].name.to_text() == f"{asked}."
        assert (records.ttl, [one.address for one in records]) == (30, ["10.96.0.1"])

    def test_an_alias_precedes_the_addresses_of_a_stripped_name(self) -> None:
        reply = served(question("WWW.example.com.App.svc.cluster.local"))
        assert reply is not None
        assert [one.to_text() for one in reply.answer] == [
            "WWW.example.com.App.svc.cluster.local. 30 IN CNAME WWW.example.com.",
            "WWW.example.com. 30 IN A 240.240.0.1",
        ]

    @pytest.mark.parametrize("asked", ["deep", "Deep.app.svc", "deep.app.svc.cluster.local"])
    def test_an_alias_of_more_labels_than_its_question(self, asked: str) -> None:
        reply = served(question(asked))
        assert reply is not None
        assert [one.to_text() for one in reply.answer] == [
            f"{asked}. 30 IN CNAME a.b.c.d.e.example.com.",
            "a.b.c.d.e.example.com. 30 IN A 240.240.0.3",
        ]

    @pytest.mark.parametrize(("name", "rdtype"), [("web", "AAAA"), ("six", "A"), ("www.example.com", "AAAA")])
    def test_no_address_of_the_family_is_no_error(self, name: str, rdtype: str) -> None:
        reply = served(question(name, rdtype))
        assert reply is not None
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
        assert reply.flags & dns.flags.AA

    def test_flags_and_id_are_those_of_the_query(self) -> None:
        query = dns.message.make_query("web", "A", id=0xBEEF, flags=dns.flags.CD)
        reply = served(query.to_wire())
        assert reply is not None
        assert reply.id == 0xBEEF
        assert dns.flags.Flag(reply.flags) == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.CD
        query.flags = dns.flags.RD
        reply = served(query.to_wire())
        assert reply is not None
        assert reply.flags & dns.flags.RD

    def test_edns_is_answered_with_edns(self) -> None:
        assert (plain := served(question())) is not None
        assert plain.edns == -1
        cookie = dns.edns.GenericOption(10, b"12345678")
        reply = served(question(use_edns=0, payload=1400, want_dnssec=True, options=[cookie]))
        assert reply is not None
        assert (reply.edns, reply.payload, reply.options) == (0, 1400, ())
        assert reply.ednsflags & dns.flags.DO
        assert (small := served(question(use_edns=0, payload=100))) is not None
        assert small.payload == 512

    def test_a_later_version_of_edns(self) -> None:
        query = dns.message.make_query("web", "A")
        query.use_edns(1)
        reply = served(query.to_wire())
        assert reply is not None
        assert (reply.rcode(), reply.answer) == (dns.rcode.BADVERS, [])

    @pytest.mark.parametrize(
        ("name", "rdtype", "rdclass"),
        [
            ("web", "SRV", "IN"),
            ("web", "HTTPS", "IN"),
            ("web", "ANY", "IN"),
            ("web", "TYPE65399", "IN"),
            ("web", "A", "CH"),
            ("1.0.96.10.in-addr.arpa", "PTR", "IN"),
            ("www.example.org", "A", "IN"),
            ("_http._tcp.web", "A", "IN"),
            (".", "A", "IN"),
        ],
    )
    def test_everything_else_is_not_ours(self, name: str, rdtype: str, rdclass: str) -> None:
        wire = dns.message.make_query(name, rdtype, dns.rdataclass.from_text(rdclass)).to_wire()
        assert served(wire) is None

    def test_the_names_of_types(self) -> None:
        kinds = ("A", "AAAA", "HTTPS", "TYPE65399")
        assert [read_query(question("web", kind)).type_text for kind in kinds] == [*kinds[:3], "UNKNOWN"]


class TestRoom:
    ADDRESSES = tuple(f"10.0.{n // 250}.{n % 250}" for n in range(1000))

    @pytest.mark.parametrize("rdtype", ["A", "AAAA"])
    @pytest.mark.parametrize("payload", [0, 100, 512, 600, 1232, 4096, 65_535])
    @pytest.mark.parametrize("canonical", [None, "web.app"])
    def test_a_datagram_holds_what_fits(self, rdtype: str, payload: int, canonical: str | None) -> None:
        addresses = self.ADDRESSES
        if rdtype == "AAAA":
            addresses = tuple(f"2001:db8::{n + 1:x}" for n in range(1000))
        options = {"use_edns": 0, "payload": payload} if payload else {}
        query = read_query(question("web.app.app.svc.cluster.local", rdtype, **options))
        room = min(max(512, payload), 65_507)
        assert udp_room(query) == room
        wire = answer(query, addresses, canonical=canonical, udp=True)
        records = read(wire).answer[-1]
        each = 16 if rdtype == "A" else 28
        assert len(wire) <= room
        assert bool(read(wire).flags & dns.flags.TC) is (len(records) < 1000)
        assert len(records) == 1000 or len(wire) + each > room
        whole = answer(query, addresses, canonical=canonical, udp=False)
        assert len(read(whole).answer[-1]) == 1000
        assert not read(whole).flags & dns.flags.TC

    def test_an_answer_of_somebody_else_is_not_cut_but_replaced(self) -> None:
        query = read_query(question("www.example.org"))
        long = dns.message.make_response(dns.message.from_wire(query.wire), recursion_available=True)
        long.set_rcode(dns.rcode.NXDOMAIN)
        short = read(shortened(query, long.to_wire()))
        assert (short.rcode(), short.answer) == (dns.rcode.NXDOMAIN, [])
        assert short.flags & dns.flags.TC
        assert short.flags & dns.flags.RA
        assert not short.flags & dns.flags.AA
        assert short.question[0].name.to_text() == "www.example.org."


class TestRefusals:
    @pytest.mark.parametrize(
        "opcode", [dns.opcode.IQUERY, dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE, 9]
    )
    def test_other_operations(self, opcode: int) -> None:
        wire = bytearray(question(id=77))
        wire[2] = opcode << 3
        reply = refused(bytes(wire))
        assert (int.from_bytes(reply[:2], "big"), len(reply)) == (77, 12)
        assert reply[2] >> 3 == 0x10 | opcode
        assert reply[3] & 0xF == dns.rcode.NOTIMP

    def test_a_response_is_a_format_error_but_an_error_gets_no_error(self) -> None:
        query = dns.message.make_query("web", "A", id=77)
        response = dns.message.make_response(query)
        reply = refused(response.to_wire())
        assert (read(reply).rcode(), read(reply).id) == (dns.rcode.FORMERR, 77)
        assert refused(reply) == b""

    @pytest.mark.parametrize("count", [0, 2, 65_535])
    def test_another_number_of_questions(self, count: int) -> None:
        wire = bytearray(question())
        wire[4:6] = count.to_bytes(2, "big")
        assert read(refused(bytes(wire))).rcode() == dns.rcode.FORMERR

    def test_too_long(self) -> None:
        wire = question().ljust(MAX_QUERY_BYTES, b"\0")
        assert read_query(wire).domain == "web.app."
        assert read(refused(wire + b"\0")).rcode() == dns.rcode.FORMERR

    @pytest.mark.parametrize(
        "name",
        [
            b"\xc0\x0c",  # a name that refers to itself
            b"\xc0\x0e\xc0\x0c",  # forwards and back
            b"\x01a\xc0\x0c",
            b"\x40" + b"a" * 64 + b"\0",
            b"\x80a\0",
            b"\x3f" + b"a" * 63,
            b"\x05ab",
            b"",
            b"\x3f".join([b"", *[b"a" * 63] * 4]) + b"\0",  # 257 bytes
        ],
    )
    def test_names_that_are_none(self, name: bytes) -> None:
        wire = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + b"\x00\x01\x00\x01"
        reply = read(refused(wire))
        assert (reply.id, reply.rcode()) == (0x1234, dns.rcode.FORMERR)

    @pytest.mark.parametrize("size", range(12))
    def test_less_than_a_header_gets_nothing(self, size: int) -> None:
        assert refused(question()[:size]) == b""

    def test_a_known_name_in_a_query_with_nonsense_behind_it(self) -> None:
        for junk in (b"\0", b"\xc0\x0c" * 50):
            reply = served(question() + junk)
            assert reply is not None
            assert (reply.rcode(), reply.question[0].name.to_text()) == (dns.rcode.FORMERR, "web.app.")
        for offset in (7, 9):  # records in the answer and authority sections
            wire = bytearray(question())
            wire[offset] = 1
            assert (reply := served(bytes(wire))) is not None
            assert reply.rcode() == dns.rcode.FORMERR
        many = bytearray(question())
        many[10:12] = b"\xff\xff"
        assert (reply := served(bytes(many))) is not None
        assert reply.rcode() == dns.rcode.FORMERR

    def test_chains_of_references_are_cut_short(self) -> None:
        """Each record refers to the reference before: reading them all would take seconds."""
        header = b"\0\1\1\0\0\1\0\0\0\0\0\4"
        names = b"\3web\3app\0" + b"\0\1\0\1"
        chain = b"".join((0xC00C + 2 * n).to_bytes(2, "big") for n in range(1500))
        reply = served(header + names + chain)
        assert reply is not None
        assert reply.rcode() == dns.rcode.FORMERR

    def test_a_failure_repeats_the_question(self) -> None:
        reply = read(failure(read_query(question("Web.App", id=9)), dns.rcode.SERVFAIL))
        assert (reply.id, reply.rcode(), reply.question[0].name.to_text()) == (
            9,
            dns.rcode.SERVFAIL,
            "Web.App.",
        )
        assert not reply.flags & dns.flags.AA


class TestBelonging:
    def answered(self, **changes: object) -> tuple[Query, dns.message.Message]:
        query = dns.message.make_query("www.Example.org", "MX", id=1000)
        reply = dns.message.make_response(query)
        for name, value in changes.items():
            setattr(reply, name, value)
        return read_query(query.to_wire()), reply

    def test_an_answer(self) -> None:
        query, reply = self.answered()
        assert belongs(query, reply.to_wire())
        lower = dns.message.make_response(dns.message.make_query("www.example.org", "MX", id=1000))
        assert belongs(query, lower.to_wire())  # some servers do not keep the case

    def test_forgeries(self) -> None:
        query, reply = self.answered()
        wire = reply.to_wire()
        others = [
            dns.message.make_response(dns.message.make_query(name, kind, id=number)).to_wire()
            for name, kind, number in (
                ("www.example.com", "MX", 1000),
                ("www.example.org", "A", 1000),
                ("www.example.org", "MX", 1001),
            )
        ]
        two = wire[:5] + b"\2" + wire[6:]
        for forged in (*others, two, query.wire, wire[:11], b"", wire[:20], b"\xff" * 40):
            assert not belongs(query, forged)
        notify = bytearray(wire)
        notify[2] |= 4 << 3
        assert not belongs(query, bytes(notify))

    def test_only_an_error_may_come_without_the_question(self) -> None:
        query, reply = self.answered(question=[])
        assert not belongs(query, reply.to_wire())
        for rcode in (dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED):
            reply.set_rcode(rcode)
            assert belongs(query, reply.to_wire())
        reply.set_rcode(dns.rcode.NXDOMAIN)
        assert not belongs(query, reply.to_wire())


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A query in which some bytes were changed."""
    wire = bytearray(question(draw(st.sampled_from(["web", "a.wild.example", "x.y"])), use_edns=0, id=1))
    for _ in range(draw(st.integers(0, 6))):
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    return bytes(wire) + draw(st.binary(max_size=20))


@given(st.one_of(st.binary(max_size=300), mangled()), st.booleans())
@example(b"\0" * 12, True)
@example(b"\0\0\x01\0\0\1\0\0\0\0\0\0\0\0\1\0\1", False)
def test_nothing_that_arrives_is_too_strange(wire: bytes, udp: bool) -> None:
    try:
        query = read_query(wire)
        found = answer_locally(query, MESH, CLIENT, rng=random.Random(1), options=ZoneOptions(), udp=udp)
    except BadQuery as error:
        reply = error.reply
    else:
        assert query.wire == wire
        assert query.domain
        assert query.type_text
        assert 512 <= udp_room(query) <= 65_507
        reply = found.wire if found is not None else failure(query, dns.rcode.SERVFAIL)
    if reply:
        parsed = dns.message.from_wire(reply)
        assert parsed.id == int.from_bytes(wire[:2], "big")
        assert parsed.flags & dns.flags.QR
        assert len(reply) <= 65_535


QUERY = read_query(question("www.example.org", id=7))
ANSWER = dns.message.make_response(dns.message.from_wire(QUERY.wire)).to_wire()


@given(
    st.lists(st.tuples(st.integers(0, len(ANSWER) - 1), st.integers(0, 255)), max_size=3),
    st.binary(max_size=30),
)
def test_nothing_that_a_nameserver_sends_is_too_strange(changes: list[tuple[int, int]], rest: bytes) -> None:
    wire = bytearray(ANSWER + rest)
    for position, value in changes:
        wire[position] = value
    if belongs(QUERY, bytes(wire)):
        short = dns.message.from_wire(shortened(QUERY, bytes(wire)))
        assert (short.id, len(short.question)) == (7, 1)
        assert short.flags & dns.flags.TC
    else:
        assert changes
