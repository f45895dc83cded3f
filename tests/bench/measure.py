"""One measurement of one path: which load gives which rows, and how long it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench import load
from tests.bench.paths import Mesh, MeshPath
from tests.bench.rows import BY_NAME, Way
from tests.peers.traffic import OpenEchoes, dial, read_exactly

Figures = Mapping[str, float]
"""Row name to value; rows that a path cannot have (CPU of proxies on the direct path) are missing."""
FEW_CONNECTIONS = 16  # up to here the time to open them is nothing in one second of wrk


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: the full run gives figures to publish, the quick one a first look.

    ``wrk_seconds`` is for many connections; a few need one second (wrk knows no fractions).
    """

    rounds: int
    memory_rounds: int
    seconds: float
    wrk_seconds: int
    mebibytes: int
    idle_connections: int


# Even, so that either side of a pair is first as often. Full: eight to nine minutes on two cores.
FULL = Scale(rounds=8, memory_rounds=8, seconds=0.7, wrk_seconds=2, mebibytes=512, idle_connections=10_000)
QUICK = Scale(rounds=2, memory_rounds=1, seconds=0.3, wrk_seconds=1, mebibytes=128, idle_connections=1000)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A load, the rows it yields, and the proxies it passes."""

    rows: tuple[str, ...]
    run: Callable[[MeshPath, Scale, Path], Figures]
    way: Way = Way.PAIR

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of path that any of its rows is for."""
        return frozenset().union(*(BY_NAME[name].kinds for name in self.rows))


def _round_trip(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    seen = load.round_trips(path.echo, scale.seconds)
    return {"rtt_p50": seen.p50, "rtt_p99": seen.p99}


def _http(connections: int) -> Callable[[MeshPath, Scale, Path], Figures]:
    def run(path: MeshPath, scale: Scale, directory: Path) -> Figures:
        before = path.cpu_seconds()
        seen = load.http_requests(path.http, connections, _wrk_seconds(connections, scale))
        figures = {f"http_{connections}": seen.per_second}
        if connections == 64 and path.proxies:
            figures["cpu_requests"] = (path.cpu_seconds() - before) / seen.count * 100_000
        return figures

    return run


def _wrk_seconds(connections: int, scale: Scale) -> int:
    return 1 if connections <= FEW_CONNECTIONS else scale.wrk_seconds


def _bulk(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    before = path.cpu_seconds()
    figures = {
        "bulk_up": load.bulk_up(path.echo, scale.mebibytes),
        "bulk_down": load.bulk_down(path.echo, scale.mebibytes),
    }
    if path.proxies:
        figures["cpu_gib"] = (path.cpu_seconds() - before) / (2 * scale.mebibytes / 1024)
    return figures


def _bulk_8(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    return {"bulk_8": load.bulk_at_once(path.echo, scale.mebibytes)}


def _connect(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    return {"connect_p50": load.new_connections(path.echo, scale.seconds).p50}


def _connect_16(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    return {"connect_16": load.parallel_connections(path.echo, scale.seconds)}


def _mixed(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    return {"mixed_p99": load.beside_bulk(path.echo, scale.seconds, directory / "bulk.log").p99}


def _waypoint_round_trip(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    return {"waypoint_rtt_p50": load.round_trips(path.echo, scale.seconds).p50}


def _waypoint_http(path: MeshPath, scale: Scale, directory: Path) -> Figures:
    return {"waypoint_http_64": load.http_requests(path.http, 64, _wrk_seconds(64, scale)).per_second}


MEASUREMENTS = (
    Measurement(("rtt_p50", "rtt_p99"), _round_trip),
    Measurement(("http_1",), _http(1)),
    Measurement(("http_16",), _http(16)),
    Measurement(("http_64", "cpu_requests"), _http(64)),
    Measurement(("http_256",), _http(256)),
    Measurement(("bulk_up", "bulk_down", "cpu_gib"), _bulk),
    Measurement(("bulk_8",), _bulk_8),
    Measurement(("connect_p50",), _connect),
    Measurement(("connect_16",), _connect_16),
    Measurement(("mixed_p99",), _mixed),
    Measurement(("waypoint_rtt_p50",), _waypoint_round_trip, Way.WAYPOINT),
    Measurement(("waypoint_http_64",), _waypoint_http, Way.WAYPOINT),
)

MEMORY_ROWS = (
    "rss_idle_source",
    "rss_idle_destination",
    "rss_connection_source",
    "rss_connection_destination",
)


def memory(mesh: Mesh, kind: str, scale: Scale) -> Figures:
    """RSS of fresh proxies, idle after their first connection and with many connections open."""
    with mesh.open(kind) as path, OpenEchoes() as echoes:
        with dial(path.echo) as first:
            first.sendall(b"echo\n!")
            read_exactly(first, 1)
        idle = [proxy.rss_bytes() for proxy in path.proxies]
        echoes.open(path.echo, scale.idle_connections)
        echoes.check()
        figures: dict[str, float] = {}
        for side, proxy, before in zip(("source", "destination"), path.proxies, idle, strict=True):
            figures[f"rss_idle_{side}"] = before / 1024**2
            figures[f"rss_connection_{side}"] = (proxy.rss_bytes() - before) / scale.idle_connections / 1024
        return figures


def wanted(names: frozenset[str]) -> Iterator[Measurement]:
    """The measurements that yield any of these rows."""
    return (measurement for measurement in MEASUREMENTS if names.intersection(measurement.rows))
