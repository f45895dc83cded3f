"""The check of the examples of routing, run and printed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ztun.lab.fabric import Fabric
from ztun.lab.lab import Lab
from ztun.lab.page import CANARY_SHARE, SIGMAS, SPLIT_CONNECTIONS, SUPPORTED, Outcome, PageCheck
from ztun.lab.page_mesh import GATEWAYS, MODES, plan_page


async def run_page(fabric: Fabric, directory: Path, *, connections: int = SPLIT_CONNECTIONS) -> Outcome:
    """Start the mesh of the examples of routing, go through them, and stop it."""
    mesh = plan_page(fabric)
    lab = Lab(mesh.plan, fabric, directory, companions=mesh.companions)
    async with lab.running():
        await lab.change("mesh", mesh.objects(canary=False))
        return await PageCheck(lab, mesh, connections=connections).run()


def print_page(console: Console, outcome: Outcome) -> bool:
    """Print what was seen; True when all of it is right."""
    console.print(_rows(outcome))
    console.print(_attributes(outcome))
    console.print(_gateways(outcome))
    console.print(_splits(outcome))
    console.print(_findings(outcome))
    for fault in outcome.faults:
        console.print(f"wrong: {fault}", markup=False, soft_wrap=True)
    if outcome.faults:
        console.print(f"The examples of routing: {len(outcome.faults)} faults.")
    else:
        console.print(f"All {len(outcome.rows)} rows of the examples of routing are right in both modes.")
    return not outcome.faults


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _mark(right: bool) -> str:
    return "[green]ok[/green]" if right else "[red]wrong[/red]"


def _rows(outcome: Outcome) -> Table:
    table = _table("Answers under each example", "example", "client", "mode", "answer", "expected", "")
    for row in outcome.rows:
        table.add_row(row.example, row.client, row.mode, row.answer, row.expected, _mark(row.right))
    return table


def _attributes(outcome: Outcome) -> Table:
    table = _table("What changed an answer", "attribute", *(f"{mode} mode" for mode in MODES), "")
    for name in dict.fromkeys(name for name, _ in SUPPORTED):
        seen = [outcome.supported.get((name, mode)) for mode in MODES]
        right = seen == [SUPPORTED[name, mode] for mode in MODES]
        table.add_row(name, *("Supported" if one else "Not supported" for one in seen), _mark(right))
    return table


def _gateways(outcome: Outcome) -> Table:
    table = _table("Through the gateways", "gateway", *(f"{mode} engine" for mode in MODES))
    for gateway in GATEWAYS:
        answers = {row.mode: row.answer for row in outcome.rows if row.client == gateway}
        table.add_row(gateway, *(answers[mode] for mode in MODES))
    return table


def _splits(outcome: Outcome) -> Table:
    within = f"{CANARY_SHARE} within {SIGMAS:.0f} sigma"
    table = _table("The 80:20 split", "mode", "canary", "share", "95 % interval (Wilson)", within, "")
    for split in outcome.splits:
        low, high = split.interval
        table.add_row(
            split.mode,
            f"{split.canary} of {split.connections}",
            f"{split.canary / split.connections:.3f}",
            f"{low:.3f} to {high:.3f}",
            "yes" if split.right else "no",
            _mark(split.right),
        )
    return table


def _findings(outcome: Outcome) -> Table:
    title = "What the analyzer says of the examples as printed"
    table = _table(title, "example", "code", "place", "message")
    for name, found in outcome.findings.items():
        for one in found:
            table.add_row(name, one["code"], f"{one['file']}:{one['line']}", one["message"])
    return table
