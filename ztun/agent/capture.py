"""Capture of one network namespace: the rules loaded, kept and taken away, exactly.

What is about to be done is first worked out as a :class:`CaptureRecord`, which the caller writes down; both doing and
undoing start from it and may be repeated, so an agent that was killed anywhere can finish either. The redirect rules
are loaded last and unloaded first, each in one transaction: a pod is captured as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.rules import (
    CONNECTION_MARK,
    MARK_MASK,
    ROUTE_TABLE,
    RULE_PREFERENCE,
    TABLE,
    CaptureOptions,
    Family,
    load_program,
    route_command,
    rule_command,
    unload_program,
)
from ztun.errors import EnrolmentError

# When a listener of a group closes, what waits in its queue goes to another one of the group: a proxy that
# takes over from another loses no connection.
SYSCTLS: Mapping[str, str] = {"net/ipv4/tcp_migrate_req": "1"}
_LOCAL = "2"  # RTN_LOCAL, as ``ip -N`` prints it
_SYSTEM = Path("/proc/sys")


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """What was, or is about to be, done to a namespace."""

    program: str
    """A digest of the redirect rules."""
    rules: tuple[Family, ...] = ()
    routes: tuple[Family, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    """The values that were there before, by path below ``/proc/sys``."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What of ours is in a namespace."""

    table: bool
    rules: frozenset[Family]
    routes: frozenset[Family]
    families: tuple[Family, ...]
    loopback: bool


def digest(options: CaptureOptions) -> str:
    """What tells one set of redirect rules from another."""
    return hashlib.sha256(load_program(options).encode()).hexdigest()[:16]


async def plan_capture(namespace: PodNamespace, options: CaptureOptions) -> CaptureRecord:
    """Work out what capturing a namespace takes; changes nothing.

    What is there already is not ours and stays when the capture ends, unless our table is there too: then an
    agent that lost its records left it all. Raises :class:`EnrolmentError`, ``loopback_down`` when nothing could
    reach a proxy.
    """
    found = await _look(namespace)
    if not found.loopback:
        raise EnrolmentError(
            "loopback_down",
            f"the interface lo of {namespace.path} is down, so nothing can be redirected to a proxy",
            hint=f"ip -n {namespace.path.name} link set lo up",
        )
    left_behind = found.table
    sysctls = {}
    for name, wanted in SYSCTLS.items():
        value = _read(namespace, name)
        if value is not None and left_behind and value == wanted:
            value = "0"  # the kernel's default; what it was is not known any more
        if value is not None:
            sysctls[name] = value
    return CaptureRecord(
        program=digest(options),
        rules=tuple(one for one in found.families if left_behind or one not in found.rules),
        routes=tuple(one for one in found.families if left_behind or one not in found.routes),
        sysctls=sysctls,
    )


async def apply_capture(namespace: PodNamespace, record: CaptureRecord, options: CaptureOptions) -> None:
    """Do what a record says, as far as it is not done yet.

    Raises :class:`EnrolmentError`; a part may be done then, for the caller to complete or to undo.
    """
    found = await _look(namespace)
    for name in record.sysctls.keys() & SYSCTLS.keys():
        _write(namespace, name, SYSCTLS[name])
    for family in found.families:
        lines = ""
        if family in record.routes and family not in found.routes:
            lines += route_command("add", family)
        if family in record.rules and family not in found.rules:
            lines += rule_command("add")
        await _batch(namespace, family, lines)
    await namespace.command("nft", "-f", "-", text=load_program(options))


async def undo_capture(namespace: PodNamespace, record: CaptureRecord) -> None:
    """Take away what a record says was done, as far as it is there. Raises :class:`EnrolmentError`."""
    found = await _look(namespace)
    if found.table:
        await namespace.command("nft", "-f", "-", text=unload_program())
    for family in found.families:
        lines = ""
        if family in record.rules and family in found.rules:
            lines += rule_command("del")
        if family in record.routes and family in found.routes:
            lines += route_command("del", family)
        await _batch(namespace, family, lines)
    for name, value in record.sysctls.items():
        if name in SYSCTLS and _read(namespace, name) == SYSCTLS[name]:
            _write(namespace, name, value)


async def is_captured(namespace: PodNamespace, record: CaptureRecord, options: CaptureOptions) -> bool:
    """Whether everything a record says is there, with these options; if so there is nothing to do."""
    if record.program != digest(options):
        return False
    found = await _look(namespace)
    there = set(record.rules) <= found.rules and set(record.routes) <= found.routes
    return found.table and there


async def _look(namespace: PodNamespace) -> _Found:
    listed = json.loads(await namespace.command("nft", "-j", "list", "tables") or "{}")
    tables = [one["table"] for one in listed.get("nftables", ()) if "table" in one]
    families: list[Family] = [4]
    if _read(namespace, "net/ipv6/conf/lo/disable_ipv6") == "0":
        families.append(6)
    rules: set[Family] = set()
    routes: set[Family] = set()
    loopback = False
    for family in families:
        text = "rule show\nroute show table all type local exact default\nlink show dev lo\n"
        printed = await namespace.command("ip", f"-{family}", "-json", "-Numeric", "-batch", "-", text=text)
        for one in _objects(printed):
            if _is_rule(one):
                rules.add(family)
            elif _is_route(one):
                routes.add(family)
            elif one.get("ifname") == "lo":
                loopback = "UP" in one.get("flags", ())
    return _Found(
        table=any(one.get("family") == "inet" and one.get("name") == TABLE for one in tables),
        rules=frozenset(rules),
        routes=frozenset(routes),
        families=tuple(families),
        loopback=loopback,
    )


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


def _is_route(one: Mapping[str, Any]) -> bool:
    wanted = {"table": str(ROUTE_TABLE), "type": _LOCAL, "dst": "default", "dev": "lo"}
    return all(one.get(key) == value for key, value in wanted.items())


async def _batch(namespace: PodNamespace, family: Family, lines: str) -> None:
    if lines:
        await namespace.command("ip", f"-{family}", "-batch", "-", text=lines)


def _read(namespace: PodNamespace, name: str) -> str | None:
    """The value of a kernel setting inside; None where the kernel has no such setting."""
    try:
        return namespace.run(lambda: (_SYSTEM / name).read_text().strip())
    except OSError:
        return None


def _write(namespace: PodNamespace, name: str, value: str) -> None:
    """Set a kernel setting inside; where it is read-only, in a container, capture does without."""

    def write() -> None:
        if (path := _SYSTEM / name).read_text().strip() != value:
            path.write_text(value)

    with contextlib.suppress(OSError):
        namespace.run(write)
