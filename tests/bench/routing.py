"""``python -m tests.bench.routing``: what the size of the routing configuration costs.

Reload time, the longest stall of another thread during a reload, and the time of a decision, with 10 and with 10,000
VirtualServices; then the same of a proxy's event loop while a file with all of them replaces another. Prints tables,
and JSON with ``--json FILE``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvloop
import yaml
from rich.console import Console
from rich.table import Table

from waypoint.engines.ambient import AmbientEngine
from waypoint.engines.sidecar import SidecarEngine
from ztun.mesh.document import Document
from ztun.mesh.model import Service, ServicePort, Vip, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.proxy.process import SWITCH_SECONDS
from ztun.proxy.routers import CompiledRouter
from ztun.routing import Connection, Hop, HopKind, Router, RoutingEngine
from ztun.sources.files import FileSource

SIZES = ((10, 10), (10_000, 1_000))
DECISIONS = 20_000
TICK_SECONDS = 0.001
WATCH_SECONDS = 1.0  # until the directory is watched
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


@dataclass(frozen=True)
class WholeReload:
    """From the change of a file to connections that are decided by it, as the event loop of a proxy lives it."""

    engine: str
    virtual_services: int
    services: int
    seconds: float
    stall_milliseconds: float


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
            first, load, _ = measured(partial(engine.router, before))
            second, reload, stall = measured(partial(engine.router, after, first))
            decision = decision_seconds(second, HOPS[engine.name], services)
            found.append(
                Row(engine.name, virtual_services, services, load, reload, stall * 1e3, decision * 1e6)
            )
    return found


def text_of(virtual_services: int, services: int, weight: int) -> str:
    """The mesh of ``mesh`` as a file."""
    snapshot = mesh(virtual_services, services, weight)
    objects: list[Any] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": service.name, "namespace": service.namespace},
            "spec": {
                "clusterIP": service.vips[0].ip,
                "selector": {"app": service.name},
                "ports": [{"name": "tcp", "port": 80, "targetPort": 8080}],
            },
        }
        for service in snapshot.services.values()
    ]
    objects += [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"s{number}", "namespace": "default", "labels": {"app": f"s{number}"}},
            "spec": {"nodeName": "n"},
            "status": {"podIP": pod.addresses[0]},
        }
        for number, pod in enumerate(snapshot.workloads.values())
    ]
    objects += [one.data for one in snapshot.documents]
    return yaml.dump_all(objects, Dumper=yaml.CSafeDumper)


async def whole_reload(engine: RoutingEngine, virtual_services: int, services: int) -> WholeReload:
    """Nothing else runs on the loop but a clock that ticks."""
    with tempfile.TemporaryDirectory() as directory:
        path, next_path = Path(directory) / "mesh.yaml", Path(directory) / "next"
        path.write_text(text_of(10, services, 20))
        routers = CompiledRouter(engine)
        loaded: asyncio.Queue[Snapshot] = asyncio.Queue()
        source = FileSource([path], on_snapshot=loaded.put_nowait)
        routers.load(source.load())
        gc.collect()
        gc.freeze()
        following = asyncio.create_task(source.run())
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                before = time.perf_counter()
                await asyncio.sleep(TICK_SECONDS)
                longest = max(longest, time.perf_counter() - before - TICK_SECONDS)

        next_path.write_text(text_of(virtual_services, services, 30))
        await asyncio.sleep(WATCH_SECONDS)
        ticking = asyncio.create_task(tick())
        started = time.perf_counter()
        next_path.replace(path)
        await routers.recompile(await loaded.get())
        seconds = time.perf_counter() - started
        for task in (following, ticking):
            task.cancel()
        await asyncio.gather(following, ticking, return_exceptions=True)
    return WholeReload(engine.name, virtual_services, services, seconds, longest * 1e3)


def whole_reloads() -> list[WholeReload]:
    """With the settings of a proxy process."""
    sys.setswitchinterval(SWITCH_SECONDS)
    return [
        uvloop.run(whole_reload(engine, *size))
        for size in SIZES
        for engine in (AmbientEngine(), SidecarEngine())
    ]


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
    console = Console()
    console.print(table)
    logging.disable(logging.ERROR)  # what the engines do not honour in these rules is known
    reloads = whole_reloads()
    table = Table(title="From 10 VirtualServices in a file to as many as said")
    for name in ("engine", "VirtualServices", "services", "seconds", "stall ms"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for one in reloads:
        table.add_row(
            one.engine,
            str(one.virtual_services),
            str(one.services),
            f"{one.seconds:.3f}",
            f"{one.stall_milliseconds:.1f}",
        )
    console.print(table)
    if options.json:
        values = {"engines": [asdict(row) for row in found], "reloads": [asdict(one) for one in reloads]}
        options.json.write_text(json.dumps(values, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
