"""The rows of the benchmark: what is measured, in which unit, and the ratio to Envoy each row aims at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FLOOR = 0.7  # of Envoy's throughput; the same distance the other way round for times and memory


class Way(Enum):
    """Which proxies a row's load passes."""

    PAIR = "pair"
    """The source's and the destination's."""
    WAYPOINT = "waypoint"
    """And a waypoint between the two."""


EVERYWHERE = frozenset({"ztun", "envoy", "nginx", "direct"})
PROXIES = EVERYWHERE - {"direct"}
MESHES = frozenset({"ztun", "envoy"})
"""Those that carry many connections in one tunnel; nginx opens a TLS connection for each."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``target`` is the ratio ztun / Envoy to reach, ``higher`` what is better.

    ``kinds`` are the columns that do the same job, so that their figures mean the same.
    """

    name: str
    label: str
    unit: str
    higher: bool
    target: float
    kinds: frozenset[str] = EVERYWHERE

    @property
    def floor(self) -> float:
        """The ratio that must never be missed."""
        return FLOOR if self.higher else 1 / FLOOR

    def reaches(self, ratio: float, bound: float) -> bool:
        """Whether a ratio is at least as good as a bound."""
        return ratio >= bound if self.higher else ratio <= bound

    def bound(self, value: float) -> str:
        """A bound as the table shows it, e.g. ``<= 0.95``."""
        return f"{'>=' if self.higher else '<='} {value:.2f}"


def _more(name: str, label: str, unit: str, target: float, kinds: frozenset[str] = EVERYWHERE) -> Row:
    return Row(name, label, unit, True, target, kinds)


def _less(name: str, label: str, unit: str, target: float, kinds: frozenset[str] = EVERYWHERE) -> Row:
    return Row(name, label, unit, False, target, kinds)


ROWS = (
    _less("rtt_p50", "round trip 64 B, p50", "us", 0.95),
    _less("rtt_p99", "round trip 64 B, p99", "us", 1.1),
    _more("http_1", "HTTP keep-alive, 1 connection", "req/s", 1.0),
    _more("http_16", "HTTP keep-alive, 16 connections", "req/s", 1.1),
    _more("http_64", "HTTP keep-alive, 64 connections", "req/s", 1.2),
    _more("http_256", "HTTP keep-alive, 256 connections", "req/s", 1.2),
    _more("bulk_up", "bulk up, 1 connection", "Gbit/s", 1.05),
    _more("bulk_down", "bulk down, 1 connection", "Gbit/s", 1.05),
    _more("bulk_8", "bulk, 4 up and 4 down at once", "Gbit/s", 1.0),
    _less("connect_p50", "new connection, sequential, p50", "us", 0.9),
    _more("connect_16", "connections, 16 in parallel", "conn/s", 1.0),
    _less("mixed_p99", "round trip beside a bulk upload, p99", "us", 1.0, MESHES | {"direct"}),
    _less("rss_idle_source", "RSS idle, source", "MiB", 0.8, MESHES),
    _less("rss_idle_destination", "RSS idle, destination", "MiB", 0.8, MESHES),
    _less("rss_connection_source", "RSS per idle connection, source", "KiB", 1.0, MESHES),
    _less("rss_connection_destination", "RSS per idle connection, dest.", "KiB", 1.0, MESHES),
    _less("waypoint_rtt_p50", "through a waypoint: round trip, p50", "us", 1.0, MESHES),
    _more("waypoint_http_64", "through a waypoint: HTTP, 64 connections", "req/s", 1.0, MESHES),
    _less("cpu_gib", "CPU of both proxies per GiB", "s", 1.0, PROXIES),
    _less("cpu_requests", "CPU of both proxies per 100,000 requests", "s", 1.0, PROXIES),
)
BY_NAME = {row.name: row for row in ROWS}
