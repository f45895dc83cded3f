"""The spelling of names, hosts and labels, as the API server checks it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from waypoint.resources.schema import parse_duration
from waypoint.routes.names import is_ip

MAX_HOST_CHARACTERS = 255  # RFC 1035 section 2.3.4, as Istio counts it

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII | re.IGNORECASE)
_WILDCARD_LABEL = re.compile(r"\*[a-z0-9-]{0,62}", re.ASCII | re.IGNORECASE)
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LABEL_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_SNI_CLUSTER = re.compile(r"outbound_\.\d{1,5}_\.[a-z0-9-]*_\.(.+)", re.ASCII | re.IGNORECASE)


def is_label(text: str) -> bool:
    """A DNS-1123 label in any case."""
    return _LABEL.fullmatch(text) is not None


def is_namespace(text: str) -> bool:
    """A namespace name."""
    return _NAMESPACE.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """A DNS name whose first label may be or begin with ``*``, ``*`` itself excluded."""
    cluster = _SNI_CLUSTER.fullmatch(text)
    name = cluster.group(1) if cluster else text.removesuffix(".")
    if not name or len(text) > MAX_HOST_CHARACTERS:
        return False
    first, *rest = name.split(".")
    if not (is_label(first) or (_WILDCARD_LABEL.fullmatch(first) and rest)):
        return False
    if not all(is_label(label) for label in rest):
        return False
    return not (rest or [first])[-1].isdecimal()


def is_host_or_ip(text: str) -> bool:
    """A host as ``spec.hosts`` takes it, except ``*``."""
    return is_ip(text) or is_host(text)


def label_error(labels: Mapping[str, str]) -> str:
    """What is wrong with a set of labels, or an empty string."""
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if slash and not (is_host(prefix) and not prefix.startswith("*")):
            return f"label key {key!r} has a malformed prefix"
        if not _LABEL_PART.fullmatch(name):
            return f"label key {key!r} is malformed"
        if value and not _LABEL_PART.fullmatch(value):
            return f"value {value!r} of label {key} is malformed"
    return ""


def gateway_error(name: str) -> str:
    """What is wrong with a gateway reference, or an empty string. The old dotted form passes."""
    namespace, slash, rest = name.partition("/")
    if not slash:
        if all(is_label(label) for label in name.split(".")):
            return ""
        return f"{name!r} is no gateway name"
    if not namespace or not rest:
        return f"{name!r} lacks a namespace or a name"
    if namespace != "." and not is_namespace(namespace):
        return f"{namespace!r} is no namespace"
    return "" if is_host(rest) and "*" not in rest else f"{rest!r} is no gateway name"


def duration_error(text: str, *, zero: bool = False) -> str:
    """What is wrong with a duration, or an empty string. ``zero`` permits ``0s``."""
    value = parse_duration(text)
    if value is None:
        return f"{text!r} is no duration; write for example 1.5s"
    if value == 0 and zero:
        return ""
    if value * 1000 < 1:
        return f"{text} is below 1ms"
    return "" if (value * 1000).denominator == 1 else f"{text} is finer than 1ms"


def is_prime(number: int) -> bool:
    """By trial division: for table sizes, at most some millions."""
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True
