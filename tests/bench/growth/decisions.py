"""What a new connection feels of services, workloads, policies and VirtualServices that do not concern it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

from tests.bench import load
from tests.bench.growth.crowd import KINDS
from tests.bench.growth.scale import Scale
from tests.bench.growth.series import Panel
from tests.bench.paths import Mesh, MeshPath
from tests.bench.rounds import WARM_UP_SECONDS, ordered

VIRTUAL_SERVICES = "VirtualServices"


def measure(mesh: Mesh, scale: Scale) -> list[Panel]:
    """One panel with a line per kind of object; the proxies of all sizes of a kind run at the same time.

    The client dials the virtual address of a service. VirtualServices are decided at a waypoint, so that line lies
    higher: the connection passes three proxies.
    """
    panel = Panel("connect", "New connection, p50", "objects of the kind", "µs")
    for kind in KINDS:
        line = panel.line(f"{kind}, at a waypoint" if kind == VIRTUAL_SERVICES else kind)
        with ExitStack() as stack:
            paths = {
                count: stack.enter_context(_open(mesh, kind, count, pod))
                for count, pod in zip(scale.objects, mesh.extra_pods, strict=True)
            }
            for path in paths.values():
                load.new_connections(path.echo, WARM_UP_SECONDS)
            for number in range(scale.rounds):
                for count in ordered(scale.objects, number):
                    line.add(count, load.new_connections(paths[count].echo, scale.seconds).p50)
    return [panel]


def _open(mesh: Mesh, kind: str, count: int, pod: str) -> AbstractContextManager[MeshPath]:
    documents = list(KINDS[kind](count))
    tag = f"{kind}-{count}"
    if kind == VIRTUAL_SERVICES:
        return mesh.ztun_waypoint(pod, tag=tag, documents=documents)
    return mesh.ztun(pod, tag=tag, documents=documents)
