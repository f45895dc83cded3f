"""Log levels per scope, changed while the proxy runs.

A directive is ``level`` (for everything) or ``scope=level``; directives are separated by commas. A scope's
level covers the scopes below it: ``proxy=trace`` covers ``proxy::inbound``. The longest matching scope wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from ztun.errors import ConfigError

TRACE, DEBUG, INFO, WARN, ERROR, OFF = 5, 10, 20, 30, 40, 100
LEVELS: Mapping[str, int] = MappingProxyType(
    {"trace": TRACE, "debug": DEBUG, "info": INFO, "warn": WARN, "error": ERROR, "off": OFF}
)
MAX_SCOPES = 256  # directives arrive over HTTP; nobody tunes more scopes than this by hand
_NAMES = {number: name for name, number in LEVELS.items()} | {WARN: "warn"}
_SCOPE = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_ANY = ""


def level_name(level: int) -> str:
    """``info`` for 20, and so on."""
    return _NAMES[level]


def parse_directives(text: str) -> dict[str, int]:
    """Read ``info,proxy=trace`` as {"": 20, "proxy": 5}. Raises ``ConfigError`` naming the wrong part."""
    rules: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        scope, separator, name = part.rpartition("=")
        if separator and not _SCOPE.fullmatch(scope):
            raise ConfigError("log_directive", f"{scope!r} is not a log scope", hint="write scope=level")
        level = LEVELS.get(name.lower())
        if level is None:
            raise ConfigError(
                "log_directive", f"{name!r} is not a log level", hint=f"use one of {', '.join(LEVELS)}"
            )
        rules[scope] = level
    if not rules:
        raise ConfigError("log_directive", "no log level given", hint="write level or scope=level")
    if len(rules) > MAX_SCOPES:
        raise ConfigError("log_directive", f"more than {MAX_SCOPES} log scopes", hint="set a common prefix")
    return rules


class Levels:
    """The threshold of every scope. Reading takes no lock; a change replaces the whole table at once."""

    def __init__(self, directives: str = "info") -> None:
        self._initial = {_ANY: INFO} | parse_directives(directives)
        self._state: tuple[dict[str, int], dict[str, int]] = (self._initial, {})

    def enabled(self, scope: str, level: int) -> bool:
        """Whether lines of this level are written for this scope."""
        rules, known = self._state
        threshold = known.get(scope)
        if threshold is None:
            threshold = self._threshold(rules, scope)
            if len(known) < MAX_SCOPES:
                known[scope] = threshold
        return level >= threshold

    @staticmethod
    def _threshold(rules: Mapping[str, int], scope: str) -> int:
        matches = [
            prefix
            for prefix in rules
            if scope == prefix or prefix == _ANY or scope.startswith((f"{prefix}::", f"{prefix}."))
        ]
        return rules[max(matches, key=len)]

    def update(self, directives: str) -> None:
        """Add directives to those in force. Raises ``ConfigError``; then nothing has changed."""
        rules = self._state[0] | parse_directives(directives)
        if len(rules) > MAX_SCOPES:
            raise ConfigError(
                "log_directive", f"more than {MAX_SCOPES} log scopes", hint="reset the levels first"
            )
        self._state = (rules, {})

    def reset(self, directives: str = "") -> None:
        """Go back to the levels of the start, then ``update`` (which may raise ``ConfigError``)."""
        rules = self._initial | (parse_directives(directives) if directives else {})
        self._state = (rules, {})

    def __str__(self) -> str:
        rules = self._state[0]
        scopes = [f"{scope}={level_name(level)}" for scope, level in sorted(rules.items()) if scope != _ANY]
        return ",".join([level_name(rules[_ANY]), *scopes])
