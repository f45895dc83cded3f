"""Asking a running proxy over its admin port, or a dump that was saved from one.

The answer is JSON from outside: it is checked before anything is shown, and what an older or newer proxy
leaves out or adds does no harm.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from ztun.cli.dump_models import Dump
from ztun.errors import ConfigError, ConnectError
from ztun.mesh.address import AddressError, parse_host_port

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 10.0  # a dump of a large mesh takes a second or two
MAX_DUMP_BYTES = 512 * 1024 * 1024  # some hundred thousand workloads

_HINT = "start one with 'ztun proxy', name another with --admin HOST:PORT, or read a saved dump with --file"


def fetch_dump(address: str, path: str) -> Dump:
    """The dump of the proxy at ``address``, or of the file ``path`` when that is not empty ("-" is standard
    input).

    Raises ``ConnectError`` when no proxy answers, ``ConfigError`` when the answer is not a dump.
    """
    if path:
        return parse_dump(_read_file(path), path)
    return parse_dump(_request(address, "GET", "/config_dump"), address)


def parse_dump(text: bytes, origin: str) -> Dump:
    """Check a dump; raises ``ConfigError`` naming the first part that is wrong."""
    try:
        return TypeAdapter(Dump).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ConfigError(
            "not_a_dump",
            f"{origin} does not hold a config dump: {where}: {first['msg']}",
            hint="a dump is what GET /config_dump of the admin port answers",
        ) from None


def change_levels(address: str, level: str, *, reset: bool) -> str:
    """Show or change the log levels of a proxy; returns its answer. Raises like :func:`fetch_dump`."""
    query = {"reset": ""} if reset else {}
    if level:
        query["level"] = level
    return _request(address, "POST", "/logging", query).decode("utf-8", "replace").strip()


def _read_file(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read(MAX_DUMP_BYTES)
        with Path(path).open("rb") as file:
            return file.read(MAX_DUMP_BYTES)
    except OSError as error:
        raise ConfigError("dump_file", f"cannot read {path}: {error.strerror}") from None


def _request(address: str, method: str, path: str, query: Mapping[str, str] | None = None) -> bytes:
    import httpx

    try:
        parse_host_port(address)
    except AddressError as error:
        raise ConfigError("admin_address", f"--admin {address!r}: {error}") from None
    try:
        with (
            httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS) as client,
            client.stream(method, f"http://{address}{path}", params=query) as answer,
        ):
            body = _read_answer(answer)
    except httpx.HTTPError as error:
        reason = _reason(error)
        raise ConnectError(
            "admin_unreachable", f"no proxy answers at {address}: {reason}", hint=_HINT
        ) from None
    if answer.status_code == 200:
        return body
    said = body.decode("utf-8", "replace").strip().partition("\n")[0]
    raise ConfigError(
        "admin_refused",
        f"{address} answered {answer.status_code} to {method} {path}: {said}",
        hint="" if answer.status_code == 400 else "is this the admin port of a proxy?",
    )


def _reason(error: httpx.HTTPError) -> str:
    """In words; the system's own come with a number in brackets that says nothing to most readers."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return text[:1].lower() + text[1:] if text else type(error).__name__


def _read_answer(answer: httpx.Response) -> bytes:
    body = bytearray()
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > MAX_DUMP_BYTES:
            raise ConfigError("dump_size", f"the answer is larger than {MAX_DUMP_BYTES} bytes")
    return bytes(body)
