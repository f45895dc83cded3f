"""``python -m tests.bench``: ztun beside Envoy and the direct path, in paired rounds."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.bench import load, measure
from tests.bench.measure import FULL, MEMORY_ROWS, QUICK, Scale
from tests.bench.paths import KINDS, Mesh
from tests.bench.report import Results, as_json, print_table
from tests.bench.rows import BY_NAME
from tests.peers.process import raise_descriptor_limit

WARM_UP_SECONDS = 0.2
TABLE_COLUMNS = 132  # so that the table is not folded when the output goes to a file


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and print the table. The exit code says only whether it ran."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    parser.add_argument(
        "--row", action="append", choices=sorted(BY_NAME), metavar="NAME", help="only this row"
    )
    parser.add_argument("--path", action="append", choices=KINDS, metavar="KIND", help="only this path")
    parser.add_argument("--rounds", type=int, help="number of paired rounds")
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else FULL
    names = frozenset(options.row or BY_NAME)
    kinds = tuple(dict.fromkeys(options.path or KINDS))
    console = Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    raise_descriptor_limit()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ztun-bench-") as directory, Mesh(Path(directory)) as mesh:
        results = run(mesh, scale, names, kinds, options.rounds or scale.rounds)
    facts = {
        "quick": options.quick,
        "rounds": options.rounds or scale.rounds,
        "seconds": time.monotonic() - started,
    }
    title = f"{facts['rounds']} paired rounds, {facts['seconds']:.0f} s" + (
        ", quick" if options.quick else ""
    )
    print_table(results, console, title)
    if options.json:
        options.json.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    return 0


def run(mesh: Mesh, scale: Scale, names: frozenset[str], kinds: Sequence[str], rounds: int) -> Results:
    """All measurements; within a round each load meets every path in turn, in an order that rotates."""
    results = Results()
    wanted = list(measure.wanted(names))
    if wanted:
        with ExitStack() as stack:
            paths = {kind: stack.enter_context(mesh.open(kind)) for kind in kinds}
            for path in paths.values():
                load.round_trips(path.echo, WARM_UP_SECONDS)
                load.http_requests(path.http, 1, 1)
            for number in range(rounds):
                for measurement in wanted:
                    for kind in _rotated(kinds, number):
                        figures = measurement.run(paths[kind], scale, mesh.directory)
                        results.add(kind, _only(figures, names))
                _progress(f"round {number + 1} of {rounds}")
    if names.intersection(MEMORY_ROWS):
        proxied = [kind for kind in kinds if kind != "direct"]
        for number in range(min(scale.memory_rounds, rounds)):
            for kind in _rotated(proxied, number):
                results.add(kind, _only(measure.memory(mesh, kind, scale), names))
            _progress(f"memory, round {number + 1}")
    return results


def _rotated(kinds: Sequence[str], number: int) -> Sequence[str]:
    shift = number % len(kinds) if kinds else 0
    return [*kinds[shift:], *kinds[:shift]]


def _only(figures: Mapping[str, float], names: frozenset[str]) -> Mapping[str, float]:
    return {name: value for name, value in figures.items() if name in names}


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
