"""What of a capture is found in a network namespace, and what stands in its way. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.record import CaptureRecord
from ztun.agent.rules import (
    CONNECTION_MARK,
    MARK_MASK,
    NOTE_CHAIN,
    ROUTE_TABLE,
    RULE_PREFERENCE,
    TABLE,
    Family,
)
from ztun.errors import EnrolmentError

SYSTEM = Path("/proc/sys")
_NO_TABLE = "Error: No such file or directory"  # what nft says of a table that is not there
_LOCAL = "2"  # RTN_LOCAL, as ``ip -N`` prints it


@dataclass(frozen=True, slots=True)
class Traces:
    """What a look found."""

    table: bool
    """Whether there is a table of our name."""
    note: CaptureRecord | None
    """What that table says of itself; None when it is somebody else's."""
    rules: frozenset[Family]
    """The families that have the routing rule, whoever added it."""
    routes: frozenset[Family]
    """The families that have the route, whoever added it."""
    taken: frozenset[Family]
    """The families whose extra routing table leads somewhere else by default."""
    known: tuple[Family, ...]
    """The families of this kernel."""
    usable: tuple[Family, ...]
    """Those of them that are switched on here."""
    loopback: bool
    """Whether the interface lo is up."""


async def look(namespace: PodNamespace) -> Traces:
    """Look for everything; raises :class:`EnrolmentError` when a command fails or prints what it never prints."""
    try:
        return await _look(namespace)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnrolmentError(
            "command_failed",
            f"what nft or ip printed in {namespace.path} cannot be understood: {error}",
            hint="capture needs nftables 0.9.3 and iproute2 5.0 or newer, with JSON",
        ) from error


async def _look(namespace: PodNamespace) -> Traces:
    table, note = await _table(namespace)
    known: list[Family] = [4]
    usable: list[Family] = [4]
    disabled = read_setting(namespace, "net/ipv6/conf/lo/disable_ipv6")
    if disabled is not None:
        known.append(6)
        if disabled == "0":
            usable.append(6)
    rules: set[Family] = set()
    routes: set[Family] = set()
    taken: set[Family] = set()
    loopback = False
    for family in known:
        text = "rule show\nroute show table all exact default\nlink show dev lo\n"
        printed = await namespace.command("ip", f"-{family}", "-json", "-Numeric", "-batch", "-", text=text)
        for one in _objects(printed):
            if _is_rule(one):
                rules.add(family)
            elif one.get("ifname") == "lo":
                loopback = "UP" in one.get("flags", ())
            elif one.get("dst") == "default" and one.get("table") == str(ROUTE_TABLE):
                here = one.get("type") == _LOCAL and one.get("dev") == "lo"
                (routes if here else taken).add(family)
    return Traces(
        table=table,
        note=note,
        rules=frozenset(rules),
        routes=frozenset(routes),
        taken=frozenset(taken),
        known=tuple(known),
        usable=tuple(usable),
        loopback=loopback,
    )


async def _table(namespace: PodNamespace) -> tuple[bool, CaptureRecord | None]:
    try:
        listed = json.loads(await namespace.command("nft", "-j", "list", "table", "inet", TABLE))
    except EnrolmentError as error:
        if error.code == "command_failed" and _NO_TABLE in str(error):
            return False, None
        raise
    rules = [one["rule"] for one in listed["nftables"] if "rule" in one]
    notes = [one.get("comment", "") for one in rules if one["chain"] == NOTE_CHAIN]
    return True, CaptureRecord.from_note(notes[0]) if len(notes) == 1 else None


def _objects(printed: str) -> Sequence[dict[str, Any]]:
    """The objects of the lists that ``ip -json -batch`` prints, one list for each line of its input."""
    decoder, found, position = json.JSONDecoder(), [], 0
    printed = printed.strip()
    while position < len(printed):
        value, position = decoder.raw_decode(printed, position)
        found += [one for one in value if isinstance(one, dict)]
        while position < len(printed) and printed[position].isspace():
            position += 1
    return found


def _is_rule(one: Mapping[str, Any]) -> bool:
    return (
        one.get("priority") == RULE_PREFERENCE
        and one.get("fwmark") == f"{CONNECTION_MARK:#x}"
        and one.get("fwmask") == f"{MARK_MASK:#x}"
        and one.get("table") == str(ROUTE_TABLE)
    )


def read_setting(namespace: PodNamespace, name: str) -> str | None:
    """The value of a kernel setting inside; None where the kernel has no such setting."""
    try:
        return namespace.run(lambda: (SYSTEM / name).read_text().strip())
    except OSError:
        return None
