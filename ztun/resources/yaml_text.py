"""YAML and JSON text to plain data, within limits, and back from a field to its position.

Only the JSON subset of YAML comes out: mappings with text keys, lists, text, integers, floats, booleans and
null, as the Kubernetes API server reads it. Refused are duplicate keys, tags, more aliases, nodes or nesting
than the limits. A number that cannot be one here (infinite, or of too many digits to be read) comes out as the text it
was written as, so that whoever expects a number says so, with the place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # not in the stubs

from ztun.mesh.document import FieldPath

MAX_TEXT_BYTES = 64 * 1024 * 1024  # room for a List of 10,000 pods as kubectl prints it
MAX_DEPTH = 64  # the deepest Kubernetes object (a JSON schema inside a CRD) stays below 40
MAX_ALIASES = 256  # people use a few; an expansion attack needs many
LONG_LIST = 100  # items; a tree of so many objects is freed in a few milliseconds
MAX_DIGITS = 20  # of a whole number, with its sign: no field of Kubernetes has more than 64 bits
MAX_BITS = 64  # the same for numbers that are not written in decimal digits
MAX_NODES = 5_000_000  # what fits into MAX_TEXT_BYTES of ordinary YAML; bounds what aliases can multiply

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)", re.ASCII)
_PREFIXED = re.compile(r"([-+]?)0([xob]?)([0-9a-fA-F_]+)", re.ASCII)
_BASES = {"x": 16, "o": 8, "b": 2, "": 8}
_TRUE = frozenset({"yes", "true", "on"})
_TAG = "tag:yaml.org,2002:"
_TEXT, _SEQUENCE, _MAPPING = f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"
_PLAIN_TAGS: Mapping[str, Sequence[tuple[str, re.Pattern[str]]]] = yaml.SafeLoader.yaml_implicit_resolvers
"""By the first character of a plain scalar: the tags it may have, and how each looks."""


class TextError(Exception):
    """The text is not acceptable YAML or JSON. ``line`` and ``column`` count from 1 within that text."""

    def __init__(self, message: str, line: int, column: int, *, hint: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.hint = hint


def parse_chunk(text: str) -> Any:
    """The plain data of one document; raises :class:`TextError`."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _parse_json(text)
        except (ValueError, RecursionError):
            pass  # flow-style YAML begins like JSON; and Python reads no number of more than 4,300 digits
    return _Builder(text).build(_compose(text), 0)


def _parse_json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            # The YAML path finds the position of the duplicate.
            raise json.JSONDecodeError("duplicate key", text, 0)
        return found

    def constant(name: str) -> None:
        # In YAML the word is text.
        raise json.JSONDecodeError(f"{name} is no number of JSON", text, 0)

    # Not parse_int: a call for each number is half of the time of a list of pods.
    data = json.loads(text, object_pairs_hook=pairs, parse_float=_float, parse_constant=constant)
    if _HALF_CHARACTER.search(text):
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # Such text could neither be logged nor compared. The YAML path finds the position.
            raise json.JSONDecodeError("half of a surrogate pair", text, 0) from None
    if _depth(data) > MAX_DEPTH:
        raise TextError(f"nested more than {MAX_DEPTH} levels deep", 1, 1)
    return data


def _depth(data: Any) -> int:
    level, deepest = [data], 0
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return deepest


class _Composer(CParser):
    """libyaml's composer with a lean resolver: half the time of ``CSafeLoader`` for the same nodes.

    PyYAML's own resolver was half of it: it joins lists for every value, and follows paths that nobody registers.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that has none; for a scalar ``implicit`` is (plain, quoted)."""
        if kind is not yaml.ScalarNode:
            return _SEQUENCE if kind is yaml.SequenceNode else _MAPPING
        if implicit[0]:
            for tag, pattern in _PLAIN_TAGS.get(value[:1], ()):
                if pattern.match(value):
                    return tag
        return _TEXT

    def descend_resolver(self, node: yaml.Node | None, index: object) -> None:
        """Called by libyaml's composer; there are no paths to follow."""

    def ascend_resolver(self) -> None:
        """As ``descend_resolver``."""


def _compose(text: str) -> yaml.Node:
    if _opens_too_deep(text):
        raise TextError(f"nested more than {MAX_DEPTH} levels deep", 1, 1)
    composer = _Composer(text)
    try:
        node = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(text, error) from error
    except yaml.YAMLError as error:
        raise TextError(" ".join(str(error).split()), 1, 1, hint="the file must be UTF-8 text") from error
    finally:
        composer.dispose()
    if node is None:
        raise TextError("the document is empty", 1, 1)
    return node


def _syntax_error(text: str, error: yaml.MarkedYAMLError) -> TextError:
    mark = error.problem_mark or error.context_mark
    message = " ".join(part for part in (error.context, error.problem) if part)
    lines = text.rstrip().split("\n")
    if mark is None or mark.line >= len(lines):
        # What is missing at the end is best looked for where the text ends, not on the empty line after it.
        line, column = len(lines), len(lines[-1]) + 1
    else:
        line, column = mark.line + 1, mark.column + 1
    return TextError(message, line, column, hint=_syntax_hint(lines[line - 1], message))


def _syntax_hint(line: str, message: str) -> str:
    """What people usually mean when a line fails so."""
    if "{{" in line or "{%" in line:
        return "is this a template? give what it renders to"
    if "\t" in line:
        return "indent with spaces, not with tabs"
    if "alias" in message or "anchor" in message:
        return "put text that begins with * or & in quotes"
    if "mapping values are not allowed" in message:
        return "check the indentation, and put text that has a colon in quotes"
    return ""


def _opens_too_deep(text: str) -> bool:
    """Whether some line opens so many collections that the C composer might exhaust its stack.

    Brackets and block indicators are counted without regard for quoting: an upper bound, far above what
    people write on purpose, is all that is needed here; the builder enforces the exact limit.
    """
    limit = 50 * MAX_DEPTH
    depth = 0
    if text.count("[") + text.count("{") > limit:
        for bracket in re.finditer(r"[\[\]{}]", text):
            depth = depth + 1 if bracket.group() in "[{" else max(0, depth - 1)
            if depth > limit:
                return True
    indicators = re.compile(rf"(?:[-?:] ){{{limit}}}")
    return any(indicators.search(line) for line in _long_lines(text, 2 * limit))


def _long_lines(text: str, length: int) -> Iterator[str]:
    """The lines of at least ``length`` characters, found in steps of that length: a file has many lines, few long."""
    start = 0
    while len(text) - start >= length:
        newline = text.rfind("\n", start, start + length)
        if newline >= 0:
            start = newline + 1
        else:
            newline = text.find("\n", start + length)
            end = newline if newline >= 0 else len(text)
            yield text[start:end]
            start = end + 1


class _Builder:
    """Makes plain data of the node tree of ``text``. One per document, for it counts what it has seen."""

    def __init__(self, text: str) -> None:
        self._seen: set[int] = set()
        self._aliases = 0
        self._nodes = 0
        # Without aliases a value takes a character at least: such a text cannot exceed the limits.
        self._counting = "*" in text or len(text) > MAX_NODES

    def build(self, node: yaml.Node, depth: int) -> Any:
        if self._counting:
            self._count(node)
        if depth > MAX_DEPTH:
            raise _error(node, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag == _TEXT else _scalar(node)
        if isinstance(node, yaml.SequenceNode):
            _expect_tag(node, _SEQUENCE)
            return self._sequence(node.value, depth)
        _expect_tag(node, _MAPPING)
        return self._mapping(node, depth)

    def _sequence(self, items: list[yaml.Node], depth: int) -> list[Any]:
        if self._counting or len(items) < LONG_LIST:
            return [self.build(item, depth + 1) for item in items]
        # Each node goes as soon as it was read: the tree of a List of 10,000 pods, freed at once, would hold up
        # every other thread. Nothing reads it again, for there are no aliases.
        items.reverse()
        return [self.build(items.pop(), depth + 1) for _ in range(len(items))]

    def _count(self, node: yaml.Node) -> None:
        self._nodes += 1
        if id(node) in self._seen:
            self._aliases += 1
        else:
            self._seen.add(id(node))
        if self._aliases > MAX_ALIASES:
            raise _error(node, f"more than {MAX_ALIASES} uses of aliases", hint="write the parts out")
        if self._nodes > MAX_NODES:
            raise _error(node, f"more than {MAX_NODES} values in one document")

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error(key_node, "a key must be plain text")
            if key_node.tag == f"{_TAG}merge":
                merged |= self._merge(value_node, depth)
                continue
            # Keys are the text as written, as JSON demands: ``80:`` is the key "80".
            key = key_node.value
            if key in found:
                raise _error(key_node, f"duplicate key {key!r}", hint="remove one of the two")
            found[key] = self.build(value_node, depth + 1)
        return merged | found if merged else found

    def _merge(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                raise _error(source, "a merge key needs a mapping")
            merged |= self.build(source, depth + 1)
        return merged


def _error(node: yaml.Node, message: str, *, hint: str = "") -> TextError:
    return TextError(message, node.start_mark.line + 1, node.start_mark.column + 1, hint=hint)


def _expect_tag(node: yaml.Node, tag: str) -> None:
    if node.tag != tag:
        raise _error(node, f"the tag {node.tag!r} is not supported", hint="use plain YAML values")


def _scalar(node: yaml.ScalarNode) -> Any:
    tag, text = node.tag.removeprefix(_TAG), node.value
    if tag in ("str", "timestamp", "value"):
        return text
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in _TRUE
    if tag == "int":
        return _integer(text)
    if tag == "float":
        return _float(text)
    raise _error(node, f"the tag {node.tag!r} is not supported", hint="use plain YAML values")


def _integer(text: str) -> int | str:
    # Base-60 numbers of YAML 1.1 (``12:30``) stay text, as in the parsers of Kubernetes.
    if _DECIMAL.fullmatch(text):
        digits = text.replace("_", "")
        return int(digits) if len(digits) <= MAX_DIGITS else text
    prefixed = _PREFIXED.fullmatch(text)
    if prefixed is None:
        return text
    try:
        number = int(prefixed[1] + prefixed[3].replace("_", ""), _BASES[prefixed[2]])
    except ValueError:
        return text
    return number if number.bit_length() <= MAX_BITS else text


def _float(text: str) -> float | str:
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return text
    return number if math.isfinite(number) else text


@lru_cache(maxsize=8)
def _composed(text: str) -> yaml.Node:
    return _compose(text)


def locate(text: str, path: FieldPath) -> tuple[int, int]:
    """Line and column (from 1, within ``text``) of the key or list item at ``path``, or of its nearest
    ancestor.

    The text is read again, for positions are wanted only when something is wrong; keeping them for every
    value of every document would cost more memory than the documents.
    """
    try:
        node = _composed(text)
    except TextError:
        return (1, 1)
    mark = node.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if entry is None:
                break
            mark, node = entry[0].start_mark, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return (mark.line + 1, mark.column + 1)
