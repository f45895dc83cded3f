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
from tests.bench.paths import DEFAULT_KINDS, KINDS, Mesh
from tests.bench.report import Results, as_json, print_table
from tests.bench.rows import BY_NAME
from tests.bench.selection import Selection, possible
from tests.peers.process import raise_descriptor_limit

WARM_UP_SECONDS = 0.2
TABLE_COLUMNS = 132  # so that the table is not folded when the output goes to a file


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and print the table. The exit code says only whether it ran."""
    options = _options(arguments)
    scale = QUICK if options.quick else FULL
    rounds = options.rounds or scale.rounds
    selection = possible(options.path or DEFAULT_KINDS, frozenset(options.row or BY_NAME))
    console = Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    raise_descriptor_limit()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="ztun-bench-") as directory,
        Mesh(Path(directory), http=selection.http) as mesh,
    ):
        results = run(mesh, scale, selection, rounds)
    seconds = round(time.monotonic() - started)
    print_table(results, console, f"paired rounds: {rounds}, seconds: {seconds}, quick: {options.quick}")
    for note in selection.notes:
        console.print(note)
    if options.json:
        facts = {"quick": options.quick, "rounds": rounds, "seconds": seconds, "notes": selection.notes}
        options.json.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    parser.add_argument("--rounds", type=int, metavar="N", help="number of paired rounds")
    parser.add_argument(
        "--row", action="append", choices=BY_NAME, metavar="NAME", help=f"only this row: {', '.join(BY_NAME)}"
    )
    parser.add_argument(
        "--path",
        action="append",
        choices=KINDS,
        metavar="KIND",
        help="only this path: ztun, envoy, direct, or nginx, which is left out by default",
    )
    return parser.parse_args(arguments)


def run(mesh: Mesh, scale: Scale, selection: Selection, rounds: int) -> Results:
    """All measurements; within a round each load meets every path in turn, in an order that rotates."""
    results = Results()
    wanted = list(measure.wanted(selection.names))
    if wanted:
        with ExitStack() as stack:
            paths = {kind: stack.enter_context(mesh.open(kind)) for kind in selection.kinds}
            for path in paths.values():
                load.round_trips(path.echo, WARM_UP_SECONDS)
                if selection.http:
                    load.http_requests(path.http, 1, 1)
            for number in range(rounds):
                for measurement in wanted:
                    for kind in _rotated(selection.kinds, number):
                        figures = measurement.run(paths[kind], scale, mesh.directory)
                        results.add(kind, _only(figures, selection))
                _progress(f"round {number + 1} of {rounds}")
    if selection.names.intersection(MEMORY_ROWS):
        proxied = [kind for kind in selection.kinds if kind != "direct"]
        memory_rounds = min(scale.memory_rounds, rounds)
        for number in range(memory_rounds):
            for kind in _rotated(proxied, number):
                results.add(kind, _only(measure.memory(mesh, kind, scale), selection))
            _progress(f"memory, round {number + 1} of {memory_rounds}")
    return results


def _rotated(kinds: Sequence[str], number: int) -> Sequence[str]:
    shift = number % len(kinds) if kinds else 0
    return [*kinds[shift:], *kinds[:shift]]


def _only(figures: Mapping[str, float], selection: Selection) -> Mapping[str, float]:
    return {name: value for name, value in figures.items() if name in selection.names}


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
