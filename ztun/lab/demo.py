"""``ztun demo``: a mesh that stays up to be tried, or that is checked and reported on."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ztun.errors import ConfigError
from ztun.lab.check import Row, check
from ztun.lab.fabric import Fabric, loopback_fabric
from ztun.lab.lab import LOOPBACK, SOCKS5_PORT, Lab
from ztun.lab.page_report import print_page, run_page
from ztun.lab.topology import MeshPlan, plan_mesh
from ztun.resources.documents import parse_documents

MANIFESTS = ("echoserver.yaml", "telnet.yaml")
TABLE_COLUMNS = 170  # of the full table; also when it goes to a file or a pipe


async def demo(console: Console, *, checked: bool, keep: bool) -> bool:
    """Run the mesh of the examples on loopback addresses; True when every row of the check was right.

    With ``checked`` a second mesh follows, for the examples of routing. Their directory is removed at the end unless
    ``keep`` is given or something went wrong. Raises :class:`LabError` and :class:`ConfigError`.
    """
    directory = Path(tempfile.mkdtemp(prefix="ztun-demo-"))
    right = False
    try:
        with loopback_fabric() as fabric:
            plan = plan_mesh_of_examples(fabric)
            console.print(f"Starting {len(plan.nodes)} node proxies and {len(plan.servers)} servers ...")
            async with Lab(plan, fabric, directory, observed=checked).running() as lab:
                if not checked:
                    console.print(instructions(lab), highlight=False, soft_wrap=True)
                    right = True
                    await asyncio.Event().wait()
                first_right = await report(console, lab)
            console.print("\nStarting the mesh of the examples of routing ...")
            outcome = await run_page(fabric, directory / "routing")
            right = print_page(console, outcome) and first_right
    finally:
        if right and not keep:
            shutil.rmtree(directory)
        else:
            console.print(f"Configuration, CA and logs are in {directory}", highlight=False, soft_wrap=True)
    return right


def plan_mesh_of_examples(fabric: Fabric) -> MeshPlan:
    """The mesh of the example manifests, laid out on a fabric."""
    documents = []
    for name in MANIFESTS:
        text = resources.files("ztun.lab").joinpath("manifests", name).read_text()
        found, problems = parse_documents(text, file=name)
        if problems:
            raise ConfigError("lab_document", str(problems[0]))
        documents += found
    return plan_mesh(documents, fabric.addresses)


async def report(console: Console, lab: Lab) -> bool:
    """Run the check and print its table; True when every row is right."""
    rows = [row async for row in check(lab)]
    console.print(table_of(rows, console.width))
    wrong = [row for row in rows if row.faults]
    for row in wrong:
        for fault in row.faults:
            console.print(f"wrong: {row.client} to {row.target}: {fault}", markup=False, soft_wrap=True)
    if wrong:
        console.print(f"{len(wrong)} of {len(rows)} rows are wrong.")
    else:
        console.print(
            f"All {len(rows)} rows are right: mutual TLS between the nodes, policies enforced live."
        )
    return not wrong


def table_of(rows: list[Row], columns: int) -> Table:
    """Who called whom, what came back, what was on the wire, and who both ends were.

    A terminal of fewer than ``TABLE_COLUMNS`` gets the same cells below each other.
    """
    table = Table(show_lines=True)
    wide = columns >= TABLE_COLUMNS
    headings = ("who called whom", "answer", "seen on the wire", "identities") if wide else ("what was seen",)
    for heading in (*headings, ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        called = _lines(row.client, f"-> {row.target}", row.server and f"   {row.server}")
        cells = (called, row.answer, row.wire, _lines(row.source, row.destination))
        mark = "[red]wrong[/red]" if row.faults else "[green]ok[/green]"
        table.add_row(*(cells if wide else (_lines(*cells),)), mark)
    return table


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


def instructions(lab: Lab) -> str:
    """What to type while the mesh is up."""
    lines = ["The mesh is up. Talk to it as one of its clients (type a line, press Enter):", ""]
    for entry in lab.entries:
        target = f"{entry.host}:{entry.host_port}"
        command = f"nc {entry.ip} {entry.port}"
        lines.append(f"  {command:<28} # {entry.client.label} on {entry.client.node} to {target}")
    client, service = lab.plan.clients[0], lab.plan.services[0]
    url = f"telnet://{service.hostname}:{service.ports[0]}"
    lines += [f"  curl -N --socks5-hostname {client.ip}:{SOCKS5_PORT} {url}", "", "Ask the proxies:", ""]
    for node, ports in lab.ports.items():
        lines.append(f"  ztun connections --admin {LOOPBACK}:{ports.admin:<7} # {node}")
    metrics = next(iter(lab.ports.values())).metrics
    lines += [
        f"  curl -s {LOOPBACK}:{metrics}/metrics",
        "",
        f"Change the mesh: edit or add YAML in {lab.configuration}, it is read again at once.",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)
