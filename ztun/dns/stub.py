"""Resolving a name for the proxy itself, by asking the nameservers as a stub resolver does."""

from __future__ import annotations

import random
from collections.abc import Sequence

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from ztun.dns.messages import read_query
from ztun.dns.upstream import Upstream
from ztun.dns.zone import Family
from ztun.errors import DnsError

UDP_PAYLOAD_BYTES = 1232  # what passes everywhere without fragments (DNS flag day 2020)


def families(preferred: Family, *, ipv6: bool) -> tuple[Family, ...]:
    """Which families to ask for, in this order; as ztunnel, which prefers that of the original destination."""
    if not ipv6:
        return (4,)
    return (4, 6) if preferred == 4 else (6, 4)


async def resolve_first(
    upstream: Upstream, host: str, wanted: Sequence[Family], rng: random.Random
) -> tuple[str, ...]:
    """The addresses of the first of these families that has some. Raises as :func:`resolve_outside` does."""
    failure: DnsError | None = None
    for family in wanted:
        try:
            return await resolve_outside(upstream, host, family, rng)
        except DnsError as error:
            if failure is None or failure.code == "dns_empty":
                failure = error
    assert failure is not None
    raise failure


async def resolve_outside(
    upstream: Upstream, host: str, family: Family, rng: random.Random
) -> tuple[str, ...]:
    """The addresses of ``host`` as the nameservers give them, in their order.

    Raises :class:`DnsError`: those of :meth:`Upstream.ask`, ``dns_lookup`` when the name does not exist,
    ``dns_empty`` when it has no address of the family, ``dns_server_failure`` when the nameserver fails, which says
    nothing about the name.
    """
    rdtype = dns.rdatatype.A if family == 4 else dns.rdatatype.AAAA
    question = dns.message.make_query(
        host, rdtype, use_edns=0, payload=UDP_PAYLOAD_BYTES, id=rng.getrandbits(16)
    )
    query = read_query(question.to_wire())
    wire = await upstream.ask(query, udp=True)
    try:
        response = dns.message.from_wire(wire)
        if response.flags & dns.flags.TC:
            response = dns.message.from_wire(await upstream.ask(query, udp=False))
        assert isinstance(response, dns.message.QueryMessage)
        if response.rcode() == dns.rcode.NXDOMAIN:
            raise DnsError("dns_lookup", f"{host} does not exist", peer=host)
        if response.rcode() != dns.rcode.NOERROR:
            code = dns.rcode.to_text(response.rcode())
            raise DnsError("dns_server_failure", f"{host}: the nameserver answers {code}", peer=host)
        found = response.resolve_chaining().answer
    except (dns.exception.DNSException, ValueError) as error:
        raise DnsError(
            "dns_server_failure", f"{host}: the nameserver's answer cannot be used: {error}", peer=host
        ) from error
    if found is None:
        raise DnsError("dns_empty", f"{host} has no address of IPv{family}", peer=host)
    return tuple(record.address for record in found)
