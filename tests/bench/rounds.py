"""The paired rounds: within one, each load meets every path in turn, and the next time in the opposite order.

A machine drifts. In the order A B, B A, A B, B A ... whatever gets slower or faster from measurement to measurement
favours either side as often, and ztun and Envoy always follow each other directly. What stands beside them for
orientation (nginx, the direct path) is measured in every second round.
A measurement that fails is kept with its round and its reason, and its path gets fresh proxies; the other figures of
the round stay paired.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from tests.bench import load, measure
from tests.bench.measure import MEMORY_ROWS, Measurement, Scale
from tests.bench.paths import Mesh, MeshPath
from tests.bench.report import Results
from tests.bench.rows import BY_NAME, MESHES, Way
from tests.bench.selection import Selection

WARM_UP_SECONDS = 0.2


class OpenPaths:
    """The paths of a run, opened when they are first needed and again when one of their proxies has ended."""

    def __init__(self, mesh: Mesh, *, http: bool) -> None:
        self._mesh = mesh
        self._http = http
        self._open: dict[tuple[Way, str], tuple[MeshPath, ExitStack]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for _, opened in self._open.values():
                stack.push(opened)
            self._open.clear()

    def get(self, way: Way, kind: str) -> MeshPath:
        """A path whose proxies run, warmed up."""
        if (way, kind) in self._open:
            path = self._open[way, kind][0]
            if path.alive:
                return path
            self.drop(way, kind)
        with ExitStack() as stack:
            path = stack.enter_context(self._mesh.open(kind, way))
            load.round_trips(path.echo, WARM_UP_SECONDS)
            if self._http:
                load.http_requests(path.http, 1, 1)
            self._open[way, kind] = path, stack.pop_all()
        return path

    def drop(self, way: Way, kind: str) -> None:
        """End the proxies of a path; the next ``get`` starts fresh ones."""
        opened = self._open.pop((way, kind), None)
        if opened is not None:
            opened[1].close()


def run(mesh: Mesh, scale: Scale, selection: Selection, rounds: int) -> Results:
    """All measurements that were selected."""
    results = Results()
    wanted = list(measure.wanted(selection.names))
    with OpenPaths(mesh, http=selection.http) as paths:
        for number in range(rounds):
            for turn, measurement in enumerate(wanted, number):
                kinds = [kind for kind in of_round(selection.kinds, number) if kind in measurement.kinds]
                for kind in ordered(kinds, turn):
                    _measure(results, paths, measurement, number, kind, scale, mesh, selection)
            if wanted:
                _progress(f"round {number + 1} of {rounds}")
    if selection.names.intersection(MEMORY_ROWS):
        _memory(results, mesh, scale, selection, min(scale.memory_rounds, rounds))
    return results


def _measure(
    results: Results,
    paths: OpenPaths,
    measurement: Measurement,
    number: int,
    kind: str,
    scale: Scale,
    mesh: Mesh,
    selection: Selection,
) -> None:
    rows = [name for name in measurement.rows if _is_wanted(name, kind, selection)]

    def work() -> Mapping[str, float]:
        return measurement.run(paths.get(measurement.way, kind), scale, mesh.directory)

    if rows and not attempt(results, number, kind, rows, work):
        paths.drop(measurement.way, kind)


def _memory(results: Results, mesh: Mesh, scale: Scale, selection: Selection, rounds: int) -> None:
    for number in range(rounds):
        for kind in ordered(selection.kinds, number):
            rows = [name for name in MEMORY_ROWS if _is_wanted(name, kind, selection)]
            if rows:
                attempt(results, number, kind, rows, partial(measure.memory, mesh, kind, scale))
        _progress(f"memory, round {number + 1} of {rounds}")


def attempt(
    results: Results, number: int, kind: str, rows: Sequence[str], work: Callable[[], Mapping[str, float]]
) -> bool:
    """Keep the figures of ``work`` that are in ``rows``, or that it failed; says whether it succeeded."""
    try:
        figures = work()
    except Exception as error:  # whatever it is, the other paths and rounds are worth having
        results.failed(kind, number, rows, error)
        _progress(f"round {number + 1}, {kind}, {', '.join(rows)} failed: {error!r}")
        return False
    results.add(kind, number, {name: figures[name] for name in rows if name in figures})
    return True


def ordered(kinds: Sequence[str], turn: int) -> Sequence[str]:
    """The kinds as given in even turns, backwards in odd ones: A B, B A, A B, B A."""
    return kinds[::-1] if turn % 2 else kinds


def of_round(kinds: Sequence[str], number: int) -> Sequence[str]:
    """Those that a round measures: the compared ones always, the others in even rounds."""
    return [kind for kind in kinds if kind in MESHES or number % 2 == 0]


def _is_wanted(name: str, kind: str, selection: Selection) -> bool:
    return name in selection.names and kind in BY_NAME[name].kinds


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
