"""How one log line is written, as text or as JSON.

The text form is ztunnel's: time, level, scope and message separated by tabs, then ``key=value`` pairs. Values
can come from the network, so every value is escaped: none can end a line, add a field or move the cursor of a
terminal.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

LogFormat: TypeAlias = Literal["text", "json"]
Span: TypeAlias = tuple[str, Mapping[str, object]]
"""What a line happened inside of: a name and its fields, e.g. ``("proxy", {"wl": "default/echo"})``."""

_NAMED_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}
# C0 and C1 controls, line and paragraph separators, bidirectional overrides (they reorder what a terminal
# shows) and lone surrogates (they have no UTF-8 form).
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
_IN_QUOTES = re.compile(f'[{_UNPRINTABLE}"\\\\]')
_IN_MESSAGE = re.compile(f"[{_UNPRINTABLE}]")
_BARE = re.compile(r"[A-Za-z0-9._:/%*\[\]-]+", re.ASCII)
_RESERVED = frozenset({"level", "time", "scope", "message"})


class Bare(str):
    """An address or another value that the text form writes without quotes when its characters allow that."""

    __slots__ = ()


def timestamp(when: float) -> str:
    """RFC 3339 in UTC with microseconds; ``when`` is in seconds since the epoch."""
    micros = round(when * 1_000_000)
    seconds, fraction = divmod(micros, 1_000_000)
    return f"{_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=4)  # many lines are of the same second
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return _NAMED_ESCAPES.get(character) or f"\\u{{{ord(character):x}}}"


@lru_cache(maxsize=4096)  # workloads, namespaces and identities come again with every connection
def quote(text: str) -> str:
    """The text in double quotes, with everything escaped that could end the quotes or the line."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{_IN_QUOTES.sub(_escape, text)}"'


def printable(text: str) -> str:
    """The text with everything escaped that is not a printable character; quotes stay as they are."""
    return text if text.isascii() and text.isprintable() else _IN_MESSAGE.sub(_escape, text)


def text_value(value: object) -> str:
    """One value as the text form writes it: numbers and addresses bare, everything else quoted."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    if isinstance(value, Bare) and _BARE.fullmatch(text):
        return text
    return quote(text)


def _span_text(span: Span) -> str:
    name, fields = span
    inside = " ".join(f"{key}={text_value(value)}" for key, value in fields.items())
    return f":{name}{{{inside}}}" if inside else f":{name}"


def text_line(
    when: float,
    level: str,
    scope: str,
    message: str,
    fields: Iterable[tuple[str, object]],
    spans: Sequence[Span] = (),
) -> str:
    """``<time>\\t<level>\\t<scope>[:span{k=v}]*\\t<message>\\t<k=v ...>``, without the newline."""
    where = scope + "".join(map(_span_text, spans))
    pairs = " ".join([f"{key}={text_value(value)}" for key, value in fields])
    head = f"{timestamp(when)}\t{level}\t{where}\t{printable(message)}"
    return f"{head}\t{pairs}" if pairs else head


def _json_value(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def json_line(
    when: float,
    level: str,
    scope: str,
    message: str,
    fields: Iterable[tuple[str, object]],
    spans: Sequence[Span] = (),
) -> str:
    """An object with ``level``, ``time``, ``scope``, ``message``, the fields flat, and the spans by name."""
    line: dict[str, object] = {"level": level, "time": timestamp(when), "scope": scope, "message": message}
    for key, value in fields:
        line[f"field.{key}" if key in _RESERVED else key] = _json_value(value)
    for name, inside in spans:
        line.setdefault(name, {key: _json_value(value) for key, value in inside.items()})
    # ASCII output escapes control characters, separators, surrogates; DEL is the one ASCII control it leaves
    # alone.
    return json.dumps(line, separators=(",", ":")).replace("\x7f", "\\u007f")


def format_line(
    style: LogFormat,
    when: float,
    level: str,
    scope: str,
    message: str,
    fields: Iterable[tuple[str, object]],
    spans: Sequence[Span] = (),
) -> str:
    """One line in the given style; ``when`` is in seconds since the epoch."""
    render = json_line if style == "json" else text_line
    return render(when, level, scope, message, fields, spans)
