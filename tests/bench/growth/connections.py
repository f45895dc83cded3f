"""What a connection feels of others that are open and idle: round trips, and requests per second."""

from __future__ import annotations

from tests.bench import load
from tests.bench.growth.scale import Scale
from tests.bench.growth.series import Panel
from tests.bench.paths import Mesh
from tests.bench.report import COLUMNS
from tests.bench.rounds import OpenPaths, ordered
from tests.bench.rows import Way
from tests.peers.traffic import OpenEchoes

GROWING = "other open connections"
WRK_CONNECTIONS = 64


def measure(mesh: Mesh, scale: Scale, kinds: tuple[str, ...]) -> list[Panel]:
    """Panels with a line per kind of path. Each round opens the idle connections anew, through the same proxies."""
    trips = Panel("rtt", "Round trip of 64 B, p50", GROWING, "µs")
    requests = Panel(
        "requests", f"HTTP keep-alive, {WRK_CONNECTIONS} busy connections", GROWING, "requests per second"
    )
    with OpenPaths(mesh, http=True) as paths:
        for number in range(scale.rounds):
            for turn, count in enumerate(scale.open_connections, number):
                for kind in ordered(kinds, turn):
                    path = paths.get(Way.PAIR, kind)
                    with OpenEchoes() as echoes:
                        echoes.open(path.echo, count)
                        echoes.check()
                        seen = load.round_trips(path.echo, scale.seconds)
                        rate = load.http_requests(path.http, WRK_CONNECTIONS, scale.wrk_seconds)
                    trips.line(COLUMNS[kind]).add(count, seen.p50)
                    requests.line(COLUMNS[kind]).add(count, rate.per_second)
    return [trips, requests]
