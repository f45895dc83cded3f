"""What was done to a network namespace, so that exactly this can be undone.

It is kept twice: by the agent on disk, written before anything is done, and as a note in the table of rules itself,
for an agent that has lost its disk (a container that was made anew beside a pod that stayed).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from ztun.agent.rules import CaptureOptions, Family, load_program

Owner: TypeAlias = Literal["agent", "self"]

# When a listener of a group closes, what waits in its queue goes to another one of the group: a proxy that
# takes over from another loses no connection. Names are paths below /proc/sys.
SYSCTLS: Mapping[str, str] = {"net/ipv4/tcp_migrate_req": "1"}

_NOTE = re.compile(r"owner=(agent|self) rules=(4?6?) routes=(4?6?)((?: [a-z0-9_/]+=[0-9]{1,9})*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """What was, or is about to be, done to a namespace. What was there before is not in it."""

    owner: Owner = "agent"
    """Who captures: the node's agent, or ``ztun enroll --self`` from inside."""
    rules: tuple[Family, ...] = ()
    """The families whose routing rule was added."""
    routes: tuple[Family, ...] = ()
    """The families whose route was added."""
    sysctls: dict[str, str] = field(default_factory=dict)
    """The values that were there before, by path below ``/proc/sys``."""
    loaded: str = ""
    """Which redirect rules are in force (see :func:`digest`); empty until some are."""

    def note(self) -> str:
        """The text that is kept in the table, at most 128 bytes."""
        families = ("".join(map(str, one)) for one in (self.rules, self.routes))
        parts = [f"owner={self.owner}", *map("{}={}".format, ("rules", "routes"), families)]
        return " ".join([*parts, *(f"{name}={value}" for name, value in sorted(self.sysctls.items()))])

    @classmethod
    def from_note(cls, text: str) -> CaptureRecord | None:
        """Read a note; None for what none of ours can be. Which rules are in force it does not say."""
        found = _NOTE.fullmatch(text)
        if found is None:
            return None
        owner, rules, routes, sysctls = found.groups()
        pairs = dict(pair.split("=") for pair in sysctls.split())
        if not pairs.keys() <= SYSCTLS.keys():
            return None
        return cls(cast("Owner", owner), _families(rules), _families(routes), pairs, UNKNOWN)


UNKNOWN = "unknown"  # rules are in force, and nobody knows any more which


def digest(options: CaptureOptions) -> str:
    """What tells one set of redirect rules from another."""
    return hashlib.sha256(load_program(options).encode()).hexdigest()[:16]


def _families(digits: str) -> tuple[Family, ...]:
    return tuple(cast("Family", int(one)) for one in digits)
