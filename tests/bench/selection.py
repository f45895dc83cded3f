"""What can be measured here: rows and paths whose tools are missing are left out, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from shutil import which

from tests.peers.envoy import envoy_binary
from tests.peers.nginx import STREAM_MODULE, nginx_binary


@dataclass(frozen=True, slots=True)
class Selection:
    """The paths and row names of one run, and a note for each thing left out."""

    kinds: tuple[str, ...]
    names: frozenset[str]
    notes: tuple[str, ...] = ()

    @property
    def http(self) -> bool:
        """Whether any row needs the HTTP application."""
        return any(_needs_http(name) for name in self.names)


def possible(kinds: Sequence[str], names: frozenset[str]) -> Selection:
    """The part of what was asked for that this machine can do."""
    selection = Selection(tuple(dict.fromkeys(kinds)), names)
    try:
        envoy_binary()
    except FileNotFoundError as error:
        selection = _without_kind(selection, "envoy", str(error))
    nginx = True
    try:
        nginx_binary()
    except FileNotFoundError:
        nginx = False
    if not nginx or not STREAM_MODULE.exists():
        reason = "nginx with its stream module is not installed (Debian: libnginx-mod-stream)"
        selection = _without_kind(selection, "nginx", reason)
    if selection.http and not (nginx and which("wrk")):
        note = "no HTTP rows: nginx or wrk is not installed (Debian: nginx, wrk)"
        kept = frozenset(name for name in names if not _needs_http(name))
        selection = replace(selection, names=kept, notes=(*selection.notes, note))
    return selection


def _needs_http(name: str) -> bool:
    return name.startswith("http_") or name in ("waypoint_http_64", "cpu_requests")


def _without_kind(selection: Selection, kind: str, reason: str) -> Selection:
    if kind not in selection.kinds:
        return selection
    kinds = tuple(other for other in selection.kinds if other != kind)
    return replace(selection, kinds=kinds, notes=(*selection.notes, f"no column {kind}: {reason}"))
