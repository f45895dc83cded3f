"""``ztun demo``: a mesh that stays up to be tried, or that is checked and reported on."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias

import yaml
from rich.console import Console
from rich.table import Table

from ztun.errors import ConfigError
from ztun.lab.capture_check import check_strangers, stranger, wire_row
from ztun.lab.check import Row, check
from ztun.lab.fabric import Fabric, loopback_fabric
from ztun.lab.lab import Lab
from ztun.lab.netns import netns_fabric, why_not
from ztun.lab.network import UPLINK
from ztun.lab.page_report import print_page, run_page
from ztun.lab.programs import LOOPBACK, SOCKS5_PORT, agent_sockets
from ztun.lab.telnet import telnet_command
from ztun.lab.topology import MeshPlan, plan_mesh
from ztun.resources.documents import parse_documents

FabricChoice: TypeAlias = Literal["auto", "loopback", "netns"]

MANIFESTS = ("echoserver.yaml", "telnet.yaml")
TABLE_COLUMNS = 170  # of the full table; also when it goes to a file or a pipe


async def demo(console: Console, *, fabric: FabricChoice, checked: bool, keep: bool) -> bool:
    """Run the mesh of the examples; True when every row of the check was right.

    With ``checked`` a second mesh follows, for the examples of routing. Their directory is removed at the end unless
    ``keep`` is given or something went wrong. Raises :class:`LabError` and :class:`ConfigError`.
    """
    with chosen_fabric(console, fabric) as laid:
        directory = Path(tempfile.mkdtemp(prefix="ztun-demo-"))
        right = False
        try:
            right = await _run(console, laid, directory, checked=checked)
        except asyncio.CancelledError:
            right = not checked  # told to end while it was up to be tried: there is nothing to look into
            raise
        finally:
            if right and not keep:
                shutil.rmtree(directory)
            else:
                console.print(
                    f"Configuration, CA and logs are in {directory}", highlight=False, soft_wrap=True
                )
        return right


async def _run(console: Console, fabric: Fabric, directory: Path, *, checked: bool) -> bool:
    plan = plan_mesh_of_examples(fabric)
    console.print(f"Starting {len(plan.nodes)} node proxies and {len(plan.servers)} servers ...")
    async with Lab(plan, fabric, directory, observed=checked).running() as lab:
        if not checked:
            console.print(instructions(lab), highlight=False, soft_wrap=True)
            await asyncio.Event().wait()
        right = await report(console, lab)
    console.print("\nStarting the mesh of the examples of routing ...")
    outcome = await run_page(fabric, directory / "routing")
    return print_page(console, outcome) and right


@contextlib.contextmanager
def chosen_fabric(console: Console, choice: FabricChoice) -> Iterator[Fabric]:
    """The fabric that was asked for; ``auto`` takes what this machine allows, and says so."""
    reason = why_not() if choice == "auto" else ""
    with contextlib.ExitStack() as stack:
        fabric: Fabric
        if choice == "loopback" or reason:
            fabric = stack.enter_context(loopback_fabric())
            because = f", for network namespaces are not to be had: {reason}" if reason else ""
            console.print(f"Nodes and pods are loopback addresses{because}.", soft_wrap=True)
        else:
            fabric = stack.enter_context(netns_fabric())
            console.print(
                "Nodes and pods are network namespaces; what the pods send is captured.", soft_wrap=True
            )
        yield fabric


def plan_mesh_of_examples(fabric: Fabric) -> MeshPlan:
    """The mesh of the example manifests, laid out on a fabric. Where pods are captured one is left alone."""
    texts = {name: resources.files("ztun.lab").joinpath("manifests", name).read_text() for name in MANIFESTS}
    if fabric.runtime is not None:
        texts["stranger.yaml"] = yaml.safe_dump(stranger())
    documents = []
    for name, text in texts.items():
        found, problems = parse_documents(text, file=name)
        if problems:
            raise ConfigError("lab_document", str(problems[0]))
        documents += found
    return plan_mesh(documents, fabric.addresses)


async def report(console: Console, lab: Lab) -> bool:
    """Run the check and print its table; True when every row is right."""
    with lab.watch() as watch:
        rows = [row async for row in check(lab)]
        if lab.captured:
            rows += [row async for row in check_strangers(lab)]
    if lab.captured:
        rows.append(wire_row(lab, watch))
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
    lines += _captured_clients(lab) if lab.captured else _forwarded_clients(lab)
    lines += ["", "Ask the proxies:", ""]
    ztun = "ztun" if shutil.which("ztun") else str(Path(sys.executable).with_name("ztun"))
    for proxy, ports in lab.ports.items():
        ask = lab.fabric.on_node(ports.where, [ztun, "connections", "--admin", f"{LOOPBACK}:{ports.admin}"])
        lines.append(f"  {shlex.join(ask)}   # {proxy}")
    ports = next(iter(lab.ports.values()))
    scrape = ["curl", "-s", f"{LOOPBACK}:{ports.metrics}/metrics"]
    lines.append(f"  {shlex.join(lab.fabric.on_node(ports.where, scrape))}")
    if lab.fabric.runtime is not None:
        node = lab.plan.nodes[0].name
        control = agent_sockets(lab.fabric.runtime, node).control
        lines += ["", "See who is captured, and what is on the wire:", ""]
        lines.append(f"  {ztun} enrolled --control {control}")
        lines.append(f"  {shlex.join(lab.fabric.on_node(node, ['tcpdump', '-nAi', UPLINK]))}")
    lines += [
        "",
        f"Change the mesh: edit or add YAML in {lab.configuration}, it is read again at once.",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def _captured_clients(lab: Lab) -> list[str]:
    lines = []
    for entry in lab.entries:
        if entry.client.mode != "none":
            typed = telnet_command(entry.host, entry.host_port)
            command = shlex.join(lab.fabric.in_pod(entry.client, typed))
            lines.append(f"  {command}")
    return lines


def _forwarded_clients(lab: Lab) -> list[str]:
    lines = []
    for entry in lab.entries:
        target = f"{entry.host}:{entry.host_port}"
        command = f"nc {entry.ip} {entry.port}"
        lines.append(f"  {command:<28} # {entry.client.label} on {entry.client.node} to {target}")
    client, service = lab.plan.clients[0], lab.plan.services[0]
    url = f"telnet://{service.hostname}:{service.ports[0]}"
    return [*lines, f"  curl -N --socks5-hostname {client.ip}:{SOCKS5_PORT} {url}"]
