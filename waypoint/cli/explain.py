"""``waypoint explain``: the whole decision for one connection, rule by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from waypoint.explain import Explanation
    from ztun.routing import Decision, Destination


class Output(StrEnum):
    """How an explanation is printed."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain")(explain)


def explain(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and directories with YAML.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="What the client dials.")],
    source: Annotated[
        str, typer.Option("--from", metavar="NS/WORKLOAD", help="The client: a pod or its workload.")
    ] = "",
    via: Annotated[
        str, typer.Option("--via", metavar="NS/GATEWAY", help="The connection enters at this gateway.")
    ] = "",
    engine: Annotated[
        str, typer.Option(help="ambient, sidecar, both, istio-waypoint, or an installed engine.")
    ] = "both",
    server_name: Annotated[
        str, typer.Option("--sni", metavar="NAME", help="The client speaks TLS with this server name.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the random generator that draws among weights.")] = 0,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print it.")] = Output.TEXT,
    namespace: Annotated[str, typer.Option(help="The namespace of objects that name none.")] = "default",
) -> None:
    """Say where a connection goes and why: every VirtualService, rule and block that was looked at."""
    from rich.console import Console

    from waypoint.analysis.configuration import read_configuration
    from waypoint.explain import BOTH, Question
    from waypoint.explain import explain as ask
    from ztun.errors import ConfigError

    if not source and not via:
        raise typer.BadParameter("say where the connection comes from", param_hint="--from or --via")
    configuration = read_configuration(paths, namespace=namespace)
    if not configuration.documents:
        reason = "; ".join(str(problem) for problem in configuration.problems)
        raise ConfigError("no_documents", reason or "there are no documents", hint="give files with YAML")
    names = ["ambient", "sidecar"] if engine == BOTH else [engine]
    found = ask(configuration, Question(to, source, via, server_name), names, seed)
    if output is Output.TEXT:
        print_text(found, Console(highlight=False))
    else:
        _print_values([as_values(one) for one in found], output.value)


def print_text(found: Sequence[Explanation], console: Console) -> None:
    """The reasoning of each engine, then their results next to each other."""
    from rich.table import Table
    from rich.text import Text

    for one in found:
        console.rule(f"engine {one.engine}", align="left")
        for line in _header(one):
            console.print(Text(line), soft_wrap=True)
        for step in one.decision.trace:
            text = Text("  " * (step.depth + 1))
            text.append(step.subject, "bold" if step.depth <= 1 else "")
            text.append(f": {step.outcome}")
            console.print(text, soft_wrap=True)
        for line in _result(one.decision):
            console.print(Text(line, "green" if not one.decision.refused else "red"), soft_wrap=True)
        for finding in (*one.decision.diagnostics, *one.hints):
            console.print(Text(f"  {finding.severity}: {finding}", "yellow"), soft_wrap=True)
    if len(found) > 1:
        table = Table(box=None, pad_edge=False)
        for name in ("ENGINE", "RESULT", "BY", "TO"):
            table.add_column(name, overflow="fold")
        for one in found:
            decision = one.decision
            goal = ", ".join(f"{_name(each)} {_percent(each)}" for each in decision.destinations)
            table.add_row(one.engine, decision.action.value, str(decision.matched or "-"), goal or "-")
        console.rule("side by side", align="left")
        console.print(table)


def _header(one: Explanation) -> list[str]:
    lines = [f"hop: {one.hop.kind.value} in namespace {one.hop.namespace}"]
    if one.client is not None:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(one.client.labels.items()))
        lines.append(f"client: {one.client.namespace}/{one.client.name} ({labels or 'no labels'})")
    lines += [f"note: {note}" for note in one.notes]
    return lines


def _result(decision: Decision) -> list[str]:
    lines = [f"result: {decision.action.value}" + (f" by {decision.matched}" if decision.matched else "")]
    for one in decision.destinations:
        mark = "->" if one is decision.chosen else "  "
        where = ", ".join(f"{end.workload.name} {end.ip}:{end.port}" for end in one.endpoints)
        lines.append(f"{mark} {_percent(one)} {_name(one)} [{one.status.value}] {where}".rstrip())
    if decision.chosen is not None and not decision.chosen.usable:
        lines.append("   the connection is accepted and closed")
    return lines


def _name(one: Destination) -> str:
    return f"{one.host}:{one.port}" + (f" subset {one.subset}" if one.subset else "")


def _percent(one: Destination) -> str:
    return f"{round(float(one.share) * 100, 2):g} %"


def as_values(one: Explanation) -> Mapping[str, object]:
    """An explanation as plain data."""
    decision = one.decision
    return {
        "engine": one.engine,
        "hop": {"kind": one.hop.kind.value, "namespace": one.hop.namespace, "name": one.hop.name},
        "client": f"{one.client.namespace}/{one.client.name}" if one.client else "",
        "notes": list(one.notes),
        "action": decision.action.value,
        "matched": str(decision.matched) if decision.matched else None,
        "destinations": [
            {
                "host": each.host,
                "port": each.port,
                "subset": each.subset,
                "share": str(each.share),
                "status": each.status.value,
                "chosen": each is decision.chosen,
                "endpoints": [f"{end.ip}:{end.port}" for end in each.endpoints],
            }
            for each in decision.destinations
        ],
        "trace": [
            {"depth": step.depth, "subject": step.subject, "outcome": step.outcome} for step in decision.trace
        ],
        "diagnostics": [
            {"code": each.code, "severity": each.severity, "text": str(each)}
            for each in (*decision.diagnostics, *one.hints)
        ],
    }


def _print_values(values: Sequence[Mapping[str, object]], output: str) -> None:
    if output == "json":
        import json

        print(json.dumps(list(values), indent=2))
    else:
        import yaml

        print(yaml.safe_dump([dict(value) for value in values], sort_keys=False, allow_unicode=True), end="")
