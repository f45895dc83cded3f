"""What somebody probably meant: names that are close to one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.75  # finds echo for echo-server, but not productpage for reviews
MAX_CANDIDATES = 5_000  # the comparison is quadratic in the length of names and linear in their number


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The closest candidate, or an empty string when none is close.

    A fully qualified name that differs in nothing but a missing domain, namespace or first label part is closest.
    """
    known = list(candidates)[:MAX_CANDIDATES]
    completed = [one for one in known if one.startswith(f"{name}.")]
    if completed:
        return min(completed, key=len)
    if "." not in name and "/" not in name:
        by_short_name = {one.partition(".")[0]: one for one in reversed(known)}
        found = difflib.get_close_matches(name, by_short_name, n=1, cutoff=CUTOFF)
        return by_short_name[found[0]] if found else ""
    found = difflib.get_close_matches(name, known, n=1, cutoff=CUTOFF)
    return found[0] if found else ""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """``nearest`` as a hint."""
    found = nearest(name, candidates)
    return f"did you mean {found}?" if found else ""
