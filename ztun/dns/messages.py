"""DNS messages: the question of a query, the answer to it, and whether an answer belongs to a question; pure.

dnspython reads and writes them. What is forwarded is never written again: the bytes of the client go to the
nameserver, and the bytes of the nameserver to the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rrset
import dns.wire

TTL_SECONDS = 30  # ztunnel's; short, for services come and go
MIN_UDP_BYTES = 512  # RFC 1035 section 2.3.4
MAX_UDP_BYTES = 65_507  # of payload in one IPv4 datagram
MAX_MESSAGE_BYTES = 65_535  # RFC 1035 section 4.2.2, the length prefix of TCP
MAX_QUERY_BYTES = 4096  # one name and some options take a few hundred; it also bounds the time to read one
MAX_ADDITIONAL = 4  # OPT and TSIG are what a query may carry
HEADER_BYTES = 12

_HEADER_FLAGS = dns.flags.RD | dns.flags.CD
_NO_QUESTION = frozenset({dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED})
"""With these a server that did not understand the query may leave the question out."""


class BadQuery(Exception):
    """The message is not a query that can be served; ``reply`` is the answer to it, empty when it must not get one."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Header:
    """The first twelve bytes of a message (RFC 1035 section 4.1.1)."""

    id: int
    flags: int
    questions: int
    answers: int
    authorities: int
    additionals: int

    @property
    def is_response(self) -> bool:
        """QR."""
        return bool(self.flags & dns.flags.QR)

    @property
    def rcode(self) -> int:
        """The four bits of the header."""
        return self.flags & 0xF


@dataclass(frozen=True, slots=True)
class Query:
    """A query with one question. ``name`` is as the client wrote it, also its case.

    ``type_text`` is ``A``, ``HTTPS`` ...; all types without a name are one, for anybody can invent them.
    """

    wire: bytes
    header: Header
    name: dns.name.Name
    rdtype: dns.rdatatype.RdataType
    rdclass: dns.rdataclass.RdataClass
    type_text: str

    @property
    def domain(self) -> str:
        """The name as text, with its final dot."""
        return self.name.to_text()

    @property
    def asks_for_address(self) -> bool:
        """Whether it is about A or AAAA records of the internet class."""
        return self.rdclass == dns.rdataclass.IN and self.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)


def read_header(wire: bytes) -> Header | None:
    """The header of a message, or None of something shorter."""
    if len(wire) < HEADER_BYTES:
        return None
    return Header(*dns.wire.Parser(wire).get_struct("!6H"))


def read_query(wire: bytes) -> Query:
    """The question of a query. Raises :class:`BadQuery`.

    Only the header and the question are looked at: what else there is concerns whoever answers.
    """
    header = read_header(wire)
    if header is None:
        raise BadQuery("shorter than a header")
    if header.is_response:
        # an error is not answered with an error, or two servers could go on forever
        raise BadQuery("a response", b"" if header.rcode else _bare(header, dns.rcode.FORMERR))
    if dns.opcode.from_flags(header.flags) is not dns.opcode.QUERY:
        raise BadQuery("an operation that is not QUERY", _bare(header, dns.rcode.NOTIMP))
    if header.questions != 1:
        raise BadQuery(f"{header.questions} questions", _bare(header, dns.rcode.FORMERR))
    if len(wire) > MAX_QUERY_BYTES:
        raise BadQuery(f"a query of {len(wire)} bytes", _bare(header, dns.rcode.FORMERR))
    try:
        (question,) = dns.message.from_wire(wire, question_only=True).question
    except (dns.exception.DNSException, ValueError) as error:
        raise BadQuery(f"unreadable: {error}", _bare(header, dns.rcode.FORMERR)) from error
    kind = dns.rdatatype.to_text(question.rdtype)
    if kind.startswith("TYPE"):
        kind = "UNKNOWN"
    return Query(wire, header, question.name, question.rdtype, question.rdclass, kind)


def answer(query: Query, addresses: Sequence[str], *, canonical: str | None = None, udp: bool) -> bytes:
    """The authoritative answer with these addresses, which are of the family that was asked for.

    With ``canonical`` the name is an alias (CNAME) of it, and the addresses are those of ``canonical``. What does not
    fit into the datagram that the client takes is left out, and the answer is marked as truncated.
    Raises :class:`BadQuery` when the rest of the query is malformed.
    """
    message = _read_whole(query)
    if message.edns > 0:
        raise BadQuery(f"EDNS version {message.edns}", failure(query, dns.rcode.BADVERS, message))
    room = _room(message) if udp else MAX_MESSAGE_BYTES
    wire = _render(query, message, addresses, canonical)
    if len(wire) <= room:
        return wire
    # every record takes the same room, for its owner is a reference to the first
    each = 12 + (4 if query.rdtype == dns.rdatatype.A else 16)
    fitting = max(0, len(addresses) - -(-(len(wire) - room) // each))
    return _render(query, message, addresses[:fitting], canonical, truncated=True)


def failure(query: Query, rcode: dns.rcode.Rcode, message: dns.message.Message | None = None) -> bytes:
    """The reply that tells of an error, without records."""
    if message is None:
        message = dns.message.QueryMessage(query.header.id)
    reply = _reply(query, message)
    reply.flags &= ~dns.flags.AA
    reply.set_rcode(rcode)
    return reply.to_wire()


def server_failure(wire: bytes) -> bytes:
    """The reply to a query that we have failed over, with its question where that can be told; empty to what is none.

    Resolvers pass over a reply without the question.
    """
    header = read_header(wire)
    if header is None or header.is_response:
        return b""
    try:
        return failure(read_query(wire), dns.rcode.SERVFAIL)
    except Exception:  # it may be what we have failed over
        return _bare(header, dns.rcode.SERVFAIL)


def shortened(query: Query, wire: bytes) -> bytes:
    """A truncated answer in place of one that the client's datagram has no room for."""
    header = read_header(wire)
    reply = _reply(query, dns.message.QueryMessage(query.header.id))
    reply.flags = dns.flags.Flag((header.flags if header is not None else reply.flags) | dns.flags.TC)
    return reply.to_wire()


def udp_room(query: Query) -> int:
    """How many bytes the client takes in one datagram."""
    try:
        return _room(_read_whole(query))
    except BadQuery:
        return MIN_UDP_BYTES


def belongs(query: Query, wire: bytes) -> bool:
    """Whether a message is an answer to the query: same id, same question (RFC 5452 section 9.1)."""
    header = read_header(wire)
    if header is None or not header.is_response or header.id != query.header.id:
        return False
    if dns.opcode.from_flags(header.flags) is not dns.opcode.QUERY:
        return False
    if header.questions == 0:
        return header.rcode in _NO_QUESTION and not (header.answers or header.authorities)
    if header.questions != 1:
        return False
    end = HEADER_BYTES + sum(1 + len(label) for label in query.name.labels) + 4
    if wire[HEADER_BYTES:end] == query.wire[HEADER_BYTES:end]:
        return True  # nearly always: servers send the question back as it is
    try:
        (question,) = dns.message.from_wire(wire, question_only=True).question
    except (dns.exception.DNSException, ValueError):
        return False
    return (question.name, question.rdtype, question.rdclass) == (query.name, query.rdtype, query.rdclass)


def _read_whole(query: Query) -> dns.message.Message:
    header = query.header
    if header.answers or header.authorities or header.additionals > MAX_ADDITIONAL:
        raise BadQuery("a query with records", failure(query, dns.rcode.FORMERR))
    try:
        return dns.message.from_wire(query.wire, keyring=False)
    except (dns.exception.DNSException, ValueError) as error:
        raise BadQuery(f"unreadable: {error}", failure(query, dns.rcode.FORMERR)) from error


def _room(message: dns.message.Message) -> int:
    return min(max(message.payload, MIN_UDP_BYTES), MAX_UDP_BYTES)


def _render(
    query: Query,
    message: dns.message.Message,
    addresses: Sequence[str],
    canonical: str | None,
    *,
    truncated: bool = False,
) -> bytes:
    reply = _reply(query, message)
    if truncated:
        reply.flags |= dns.flags.TC
    owner = query.name
    if canonical is not None and addresses:
        owner = dns.name.from_text(canonical)
        # of a longer alias there is no such beginning: without the root it is the whole name that was asked for
        asked = dns.name.Name((*query.name.labels[:-1][: len(owner.labels) - 1], b""))
        if asked == owner:
            owner = asked  # in the case that the client wrote
        reply.answer.append(
            dns.rrset.from_text(query.name, TTL_SECONDS, query.rdclass, dns.rdatatype.CNAME, owner.to_text())
        )
    if addresses:
        kind = dns.rdtypes.IN.A.A if query.rdtype == dns.rdatatype.A else dns.rdtypes.IN.AAAA.AAAA
        records = dns.rrset.RRset(owner, query.rdclass, query.rdtype)
        for address in addresses:
            records.add(kind(query.rdclass, query.rdtype, address), TTL_SECONDS)
        reply.answer.append(records)
    return reply.to_wire(max_size=MAX_MESSAGE_BYTES, want_shuffle=False)


def _reply(query: Query, message: dns.message.Message) -> dns.message.Message:
    """An answer without records: authoritative, with the question and, where the query has it, with EDNS."""
    reply = dns.message.QueryMessage(query.header.id)
    flags = dns.flags.QR | dns.flags.AA | dns.flags.RA | (query.header.flags & _HEADER_FLAGS)
    reply.flags = dns.flags.Flag(flags)
    reply.question.append(dns.rrset.RRset(query.name, query.rdclass, query.rdtype))
    if message.edns >= 0:
        # RFC 3225 section 3: DO is copied
        reply.use_edns(0, message.ednsflags & dns.flags.DO, max(message.payload, MIN_UDP_BYTES))
    return reply


def _bare(header: Header, rcode: dns.rcode.Rcode) -> bytes:
    """A header alone, where the question cannot be told."""
    reply = dns.message.Message(header.id)
    reply.flags = dns.flags.Flag(dns.flags.QR | (header.flags & (0x7800 | dns.flags.RD)))
    reply.set_rcode(rcode)
    return reply.to_wire()
