"""``python -m tests.bench``: ztun beside Envoy, nginx and the direct path, in paired rounds.

Reading order: ``rows`` (what is measured, and the targets), ``load`` (the clients), ``paths`` with ``documents``
(what they drive), ``measure`` (which load gives which rows), ``selection`` and ``rounds``, ``report``. Beside it:
``growth`` (what more of everything costs), ``routing`` (rules by the thousand), ``micro`` (one function at a time).

What is the same on both sides of a ratio: one process per proxy, whose packets one thread carries (``--concurrency
1``); the same client, application, round and machine; certificates of one authority, TLS 1.3 with AES-128-GCM and
X25519MLKEM768, client certificates required, each side accepting one SPIFFE identity only; HTTP/2 CONNECT streams
that share tunnels; one ALLOW policy by identity judged for each connection at the destination (Envoy: the RBAC
filter) and, on the way through a waypoint, there too; one access-log line per connection and proxy, written to a
file from another thread; metrics on; TCP_NODELAY; the flow-control windows that each has by default.

What is not: a line of ztun's log and a series of its metrics name workloads and identities of both ends, Envoy's
name addresses; ztun finds pods, services and policies in a mesh that it watches, Envoy has one route per listener;
ztun dials from the address of the client where it can, Envoy does not; ztun opens a tunnel for every 100 streams,
Envoy has a higher limit of its own; the Envoy between two others hands a stream on as it
is, which is less than Istio's waypoints do. Envoy is a release build from its own wheel. nginx ``stream`` has a TLS
connection per TCP connection with the same cipher, cannot check SPIFFE identities, and its client side does not
verify the server: it stands for what TLS alone costs.

Where a firewall tracks connections, as docker's rules make it do, two minutes should pass between two runs: hundreds of
thousands of closed connections fill its table, and a full table drops packets.

Where the time goes, with the load of one row running beside it (PID of a proxy from ``pgrep -af 'ztun proxy'``)::

    make bench ARGS="--row http_64 --path ztun --rounds 30"
    perf record -g -p PID -- sleep 5 && perf report --no-children     # the C side: OpenSSL, uvloop, the kernel
    pip install py-spy && py-spy record -d 5 -r 500 -o flame.svg -p PID       # the Python side, as a flame graph
    py-spy record --native -d 5 -f speedscope -o profile.json -p PID          # both in one, for speedscope.app
    perf stat -e task-clock,context-switches,page-faults -p PID -- sleep 5    # counts rather than guesses
    strace -c -f -p PID                                                       # system calls per request
"""

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
from tests.bench.report import as_json, as_markdown, print_table
from tests.bench.rounds import run
from tests.bench.rows import BY_NAME
from tests.bench.selection import possible
from tests.peers.process import raise_descriptor_limit

QUICK_KINDS = ("ztun", "envoy", "direct")
TABLE_COLUMNS = 152  # so that the table is not folded when the output goes to a file


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
    title = f"paired rounds: {rounds}, seconds: {seconds}, quick: {options.quick}"
    print_table(results, console, title)
    for note in selection.notes:
        console.print(note)
    if options.json:
        facts = {"quick": options.quick, "rounds": rounds, "seconds": seconds, "notes": selection.notes}
        options.json.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(results, title))
    return 1 if results.failures else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
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
