"""Capture of one network namespace: the rules loaded, kept and taken away, exactly.

What is about to be done is first worked out as a :class:`CaptureRecord`, which the caller writes down; both doing and
undoing start from it and may be repeated, so an agent that was killed anywhere can finish either. The redirect rules
are loaded last and unloaded first, each in one transaction: a pod is captured as a whole or not at all.

What is there already stays: a routing rule or route that looks like ours and was not added by us is used and left,
and a table of our name that is somebody else's is not touched (the capture is refused).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.record import SYSCTLS, CaptureRecord, Owner, digest
from ztun.agent.rules import (
    ROUTE_TABLE,
    TABLE,
    CaptureOptions,
    Family,
    load_program,
    route_command,
    rule_command,
    unload_program,
)
from ztun.agent.traces import SYSTEM, Traces, look, read_setting
from ztun.errors import EnrolmentError


@dataclass(frozen=True, slots=True)
class Plan:
    """What capturing a namespace takes."""

    record: CaptureRecord
    """To be written down before :func:`apply_capture`."""
    commands: Mapping[Family, str]
    """What is missing, as input of ``ip -4`` and ``ip -6``."""


async def plan_capture(
    namespace: PodNamespace, *, owner: Owner = "agent", earlier: CaptureRecord | None = None
) -> Plan:
    """Work out what capturing a namespace takes, beside what was done ``earlier``; changes nothing.

    Without ``earlier``, what the table itself says was done counts. Raises :class:`EnrolmentError`:
    ``loopback_down``, ``foreign_table``, ``route_table_taken`` or ``captured_otherwise``.
    """
    traces = await look(namespace)
    _check(namespace, traces, owner)
    known = earlier or traces.note or CaptureRecord(owner)
    sysctls = {name: value for name in SYSCTLS if (value := read_setting(namespace, name)) is not None}
    rules = [family for family in traces.usable if family not in traces.rules]
    routes = [family for family in traces.usable if family not in traces.routes]
    record = replace(
        known,
        rules=tuple(sorted({*known.rules, *rules})),
        routes=tuple(sorted({*known.routes, *routes})),
        sysctls=sysctls | known.sysctls,
    )
    commands = {
        family: (route_command("add", family) if family in routes else "")
        + (rule_command("add") if family in rules else "")
        for family in traces.usable
    }
    return Plan(record, commands)


def _check(namespace: PodNamespace, traces: Traces, owner: Owner) -> None:
    name = namespace.path.name
    if not traces.loopback:
        raise EnrolmentError(
            "loopback_down",
            f"the interface lo of {namespace.path} is down, so nothing can be redirected to a proxy",
            hint=f"ip -n {name} link set lo up",
        )
    if traces.table and traces.note is None:
        raise EnrolmentError(
            "foreign_table",
            f"{namespace.path} has an nftables table inet {TABLE} that was not made by this command",
            hint=f"if nobody needs it: nft delete table inet {TABLE}, inside",
        )
    if traces.note is not None and traces.note.owner != owner:
        by, undo = (
            ("from inside", "ztun unenroll --self, inside")
            if traces.note.owner == "self"
            else ("by the node's agent", "ztun unenroll NETNS")
        )
        raise EnrolmentError("captured_otherwise", f"{namespace.path} is captured {by} already", hint=undo)
    for family in sorted(traces.taken - traces.routes):
        raise EnrolmentError(
            "route_table_taken",
            f"routing table {ROUTE_TABLE} of {namespace.path} has another default route for IPv{family}",
            hint=f"capture needs this table; ip -{family} route show table {ROUTE_TABLE} shows whose it is",
        )


async def apply_capture(namespace: PodNamespace, plan: Plan, options: CaptureOptions) -> CaptureRecord:
    """Do what a plan says; gives the record with what is loaded.

    Rules that are in force are replaced at one moment: no packet passes between them. Raises
    :class:`EnrolmentError`; a part may be done then, for the caller to complete (by a new plan) or to undo.
    """
    record = plan.record
    for name in record.sysctls.keys() & SYSCTLS.keys():
        _write(namespace, name, SYSCTLS[name])
    for family, lines in plan.commands.items():
        await _batch(namespace, family, lines)
    await namespace.command("nft", "-f", "-", text=load_program(options, record.note()))
    return replace(record, loaded=digest(options))


async def undo_capture(namespace: PodNamespace, record: CaptureRecord) -> None:
    """Take away what a record says was done, as far as it is there. Raises :class:`EnrolmentError`."""
    traces = await look(namespace)
    if traces.note is not None:
        await namespace.command("nft", "-f", "-", text=unload_program())
    for family in traces.known:
        lines = ""
        if family in record.rules and family in traces.rules:
            lines += rule_command("del")
        if family in record.routes and family in traces.routes:
            lines += route_command("del", family)
        await _batch(namespace, family, lines)
    for name, value in record.sysctls.items():
        if name in SYSCTLS and read_setting(namespace, name) == SYSCTLS[name]:
            _write(namespace, name, value)


async def _batch(namespace: PodNamespace, family: Family, lines: str) -> None:
    if lines:
        await namespace.command("ip", f"-{family}", "-batch", "-", text=lines)


def _write(namespace: PodNamespace, name: str, value: str) -> None:
    """Set a kernel setting inside; where it is read-only, in a container, capture does without."""

    def write() -> None:
        if (path := SYSTEM / name).read_text().strip() != value:
            path.write_text(value)

    with contextlib.suppress(OSError):
        namespace.run(write)
