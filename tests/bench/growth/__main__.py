"""``python -m tests.bench.growth``: how cost grows with open connections, with objects, and with the whole mesh.

Writes ``growth.png``, ``growth.md`` and ``growth.json`` to ``tests/bench/results``, which the README shows. With
``--part`` the other panels stay as they were. Reading order: ``scale``, ``crowd`` (objects by the thousand), the parts
(``connections``, ``decisions``, ``reload`` with ``watched``), ``series`` and ``plot``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.growth import connections, decisions, reload
from tests.bench.growth.plot import draw
from tests.bench.growth.scale import FULL, QUICK, Scale
from tests.bench.growth.series import Panel, as_json, as_markdown, from_json, merged
from tests.bench.paths import Mesh
from tests.bench.report import machine
from tests.bench.selection import possible
from tests.peers.process import raise_descriptor_limit

RESULTS = Path(__file__).resolve().parents[1] / "results"
COMPARED = ("ztun", "envoy")
CONNECTION_ROWS = frozenset({"rtt_p50", "http_64"})


def main(arguments: Sequence[str]) -> int:
    """Measure the parts and write the picture and the tables."""
    options = _options(arguments)
    scale = QUICK if options.quick else FULL
    selection = possible(COMPARED, CONNECTION_ROWS)
    parts: dict[str, Callable[[Mesh, Scale], list[Panel]]] = {
        "connections": lambda mesh, scale: connections.measure(mesh, scale, selection.kinds),
        "decisions": decisions.measure,
        "reload": reload.measure,
    }
    raise_descriptor_limit()
    started = time.monotonic()
    panels: list[Panel] = []
    for name in options.part or parts:
        with (
            tempfile.TemporaryDirectory(prefix="ztun-growth-") as directory,
            Mesh(Path(directory), http=name == "connections", extra_pods=len(scale.objects)) as mesh,
        ):
            panels += parts[name](mesh, scale)
        print(f"{name}: done after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    values = options.output / "growth.json"
    if options.part and values.exists():
        panels = merged(from_json(json.loads(values.read_text())), panels)
    facts = machine()
    values.write_text(json.dumps(as_json(panels, {"machine": facts}), indent=1) + "\n")
    title = f"medians of {scale.rounds} rounds, {facts['processors']} processors, Python {facts['python']}"
    (options.output / "growth.md").write_text(as_markdown(panels, f"# How cost grows\n\nThe {title}."))
    draw(panels, options.output / "growth.png", title)
    print(as_markdown(panels, title))
    for note in selection.notes:
        print(note)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see whether it works")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIRECTORY", help="where to write")
    parser.add_argument(
        "--part", action="append", choices=("connections", "decisions", "reload"), help="only this one"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
