"""``python -m tests.bench``: ztun beside Envoy, nginx and the direct path, in paired rounds."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench.measure import FULL, QUICK
from tests.bench.paths import KINDS, Mesh
from tests.bench.report import as_json, print_table
from tests.bench.rounds import run
from tests.bench.rows import BY_NAME
from tests.bench.selection import possible
from tests.peers.process import raise_descriptor_limit

QUICK_KINDS = ("ztun", "envoy", "direct")
TABLE_COLUMNS = 144  # so that the table is not folded when the output goes to a file


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and print the table. The exit code says only whether every round ran."""
    options = _options(arguments)
    scale = QUICK if options.quick else FULL
    rounds = options.rounds or scale.rounds
    kinds = options.path or (QUICK_KINDS if options.quick else KINDS)
    selection = possible(kinds, frozenset(options.row or BY_NAME))
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
    return 1 if results.failures else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="number of paired rounds")
    parser.add_argument(
        "--row", action="append", choices=BY_NAME, metavar="NAME", help=f"only this row: {', '.join(BY_NAME)}"
    )
    parser.add_argument(
        "--path",
        action="append",
        choices=KINDS,
        metavar="KIND",
        help=f"only this path: {', '.join(KINDS)}; the quick run leaves nginx out",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
