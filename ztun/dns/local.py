"""What a proxy answers by itself; pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

import dns.rdatatype

from ztun.dns.messages import BadQuery, Query, answer
from ztun.dns.zone import Family, ZoneOptions, look_up
from ztun.mesh.model import Workload
from ztun.mesh.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """A reply, and what the log says about it.

    Without reply the name is an alias of ``outside``, whose addresses the nameservers must be asked for.
    """

    wire: bytes
    result: str
    endpoints: int = 0
    """How many addresses were found."""
    outside: str = ""


def answer_locally(
    query: Query,
    snapshot: Snapshot,
    client: Workload,
    *,
    rng: random.Random,
    options: ZoneOptions,
    udp: bool,
) -> LocalAnswer | None:
    """The answer to a query for A or AAAA records of a name of the mesh; None for everything else."""
    if not query.asks_for_address:
        return None
    family: Family = 4 if query.rdtype == dns.rdatatype.A else 6
    known = look_up(snapshot, client, query.domain, family, rng=rng, options=options)
    if known is None:
        return None
    if known.outside and known.canonical is not None:
        return LocalAnswer(b"", known.result, outside=known.canonical)
    try:
        wire = answer(query, known.addresses, canonical=known.canonical, udp=udp)
    except BadQuery as error:
        return LocalAnswer(error.reply, f"refused ({error})")
    return LocalAnswer(wire, known.result, len(known.addresses))
