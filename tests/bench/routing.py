"""``python -m tests.bench.routing``: what the size of the routing configuration costs.

Reload time, the longest stall of another thread during a reload, and the time of a decision, with 10 and with 10,000
VirtualServices. Prints a table, and JSON with ``--json FILE``.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.sidecar import SidecarEngine
from ztun.mesh.document import Document
from ztun.mesh.model import Service, ServicePort, Vip, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.routing import Connection, Hop, HopKind, Router

SIZES = ((10, 10), (10_000, 1_000))
DECISIONS = 20_000
TICK_SECONDS = 0.001
HOPS = {"ambient": Hop(HopKind.WAYPOINT, "default"), "sidecar": Hop(HopKind.CLIENT, "default")}


@dataclass(frozen=True)
class Row:
    """One engine at one size."""

    engine: str
    virtual_services: int
    services: int
    load_seconds: float
    reload_seconds: float
    stall_milliseconds: float
    decision_microseconds: float


def mesh(virtual_services: int, services: int, weight: int) -> Snapshot:
    """Services with one endpoint each, and rules of two weighted destinations spread over them."""

    def address(first: int, number: int) -> str:
        return f"{first}.0.{number // 256}.{number % 256}"

    def host(number: int) -> str:
        return f"s{number % services}.default.svc.cluster.local"

    ports = MappingProxyType({80: ServicePort(80, 8080, "tcp", "TCP")})
    return build_snapshot(
        workloads=[
            Workload(
                uid=f"w{number}",
                name=f"w{number}",
                namespace="default",
                addresses=(address(11, number),),
                services=MappingProxyType({("default", host(number)): MappingProxyType({80: 8080})}),
            )
            for number in range(services)
        ],
        services=[
            Service(f"s{number}", "default", host(number), (Vip("", address(10, number)),), ports)
            for number in range(services)
        ],
        policies=(),
        documents=[
            document(number, host(number), host(number + 1), weight) for number in range(virtual_services)
        ],
    )


def document(number: int, host: str, other: str, weight: int) -> Document:
    """A VirtualService with a rule that never matches here, and a weighted one."""
    name = f"v{number}"
    tcp = [
        {"match": [{"sourceLabels": {"app": name}}], "route": [{"destination": {"host": other}}]},
        {
            "match": [{"gateways": ["mesh"]}],
            "route": [
                {"destination": {"host": host}, "weight": 100 - weight},
                {"destination": {"host": other}, "weight": weight},
            ],
        },
    ]
    version, kind = "networking.istio.io/v1", "VirtualService"
    spec = {"hosts": [host], "tcp": tcp}
    data = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return Document(version, kind, "default", name, data, order=number)


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of ``work`` in another thread, its seconds, and the longest stall of this one beyond a tick."""
    results: list[Any] = []

    def run() -> None:
        # As the proxies do: a collection of everything in the middle would stop all threads.
        gc.disable()
        try:
            results.append(work())
        finally:
            gc.freeze()
            gc.enable()

    thread = threading.Thread(target=run)
    longest = 0.0
    started = last = time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(TICK_SECONDS)
        now = time.perf_counter()
        longest = max(longest, now - last - TICK_SECONDS)
        last = now
    thread.join()
    return results[0], time.perf_counter() - started, longest


def decision_seconds(router: Router, hop: Hop, services: int) -> float:
    """The time of one decision for a service port that had a connection before."""
    rng = random.Random(1)
    number = min(services, 200)
    connections = [
        Connection(f"10.0.{at // 256}.{at % 256}", 80, source_namespace="default", source_labels={"app": "x"})
        for at in range(number)
    ]
    for connection in connections:
        router.decide(connection, hop, rng)
    started = time.perf_counter()
    for turn in range(DECISIONS):
        router.decide(connections[turn % number], hop, rng)
    return (time.perf_counter() - started) / DECISIONS


def rows() -> list[Row]:
    """All rows."""
    found = []
    for virtual_services, services in SIZES:
        before, after = (mesh(virtual_services, services, weight) for weight in (20, 30))
        for engine in (AmbientEngine(), SidecarEngine()):
            first, load, _ = measured(lambda engine=engine, before=before: engine.router(before))
            second, reload, stall = measured(
                lambda engine=engine, after=after, first=first: engine.router(after, first)
            )
            decision = decision_seconds(second, HOPS[engine.name], services)
            found.append(
                Row(engine.name, virtual_services, services, load, reload, stall * 1e3, decision * 1e6)
            )
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit code says only whether it ran."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the values there")
    options = parser.parse_args(arguments)
    found = rows()
    table = Table(title="Routing: every VirtualService changes between load and reload")
    for name in ("engine", "VirtualServices", "services", "load s", "reload s", "stall ms", "decision µs"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for row in found:
        table.add_row(
            row.engine,
            str(row.virtual_services),
            str(row.services),
            f"{row.load_seconds:.3f}",
            f"{row.reload_seconds:.3f}",
            f"{row.stall_milliseconds:.1f}",
            f"{row.decision_microseconds:.2f}",
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
