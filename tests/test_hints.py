"""Whoever reads an error is told what to do about it, wherever anything can be done."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL

import certs.hints
import ztun.hints
from certs.alerts import (
    _ALERTS,
    _OTHER_ALERTS,
    _REASONS,
    _VERIFICATION,
    describe_failure,
    verification_failure,
)
from certs.errors import CertError, IssuerError
from certs.peer import TlsRejection
from ztun.errors import ZtunError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
TABLE = {**certs.hints.HINTS, **ztun.hints.HINTS}
NOTHING_TO_DO = certs.hints.SELF_EXPLANATORY | ztun.hints.SELF_EXPLANATORY
ERRORS = (ZtunError, CertError, TlsRejection)
# A code that is put together, or handed over with its hint: by the place, what it can be.
COMPUTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("ztun/net/relay.py", "code"): ("connection_reset", "socket_error"),
    ("ztun/net/opening.py", "name"): ("stream_refused", "stream_reset", "tunnel_lost"),
    ("waypoint/server/sandwich.py", "code"): ("proxy_header", "proxy_header_missing"),
}


def raised() -> Iterator[tuple[str, ast.Call, type]]:
    """Every place in the code that makes an error."""
    for package in ("certs", "ztun", "waypoint"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            if path.stem == "__main__" or not calls:
                continue
            module = importlib.import_module(name.removesuffix(".__init__"))
            for call in calls:
                kind = getattr(module, call.func.id, None) if isinstance(call.func, ast.Name) else None
                if isinstance(kind, type) and issubclass(kind, ERRORS):
                    yield str(path.relative_to(ROOT)), call, kind


def codes(path: str, call: ast.Call, kind: type) -> tuple[str, ...] | None:
    """The codes that the call can have; None when they come from elsewhere together with their hints."""
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return None  # a row of a table of certs.alerts, see below
    position = 1 if kind.__name__ == "InboundRefused" else 0
    node = call.args[position]
    if isinstance(node, ast.Constant):
        return (str(node.value),)
    if isinstance(node, ast.Name | ast.Attribute):
        return COMPUTED.get((path, ast.unparse(node)))
    return None


def has_hint(call: ast.Call, kind: type) -> bool:
    by_name = any(keyword.arg == "hint" for keyword in call.keywords)
    return by_name or (kind is TlsRejection and len(call.args) > 2)


def test_every_error_has_a_hint_or_needs_none() -> None:
    bare, computed = [], []
    for path, call, kind in raised():
        if has_hint(call, kind):
            continue
        found = codes(path, call, kind)
        if found is None:
            computed.append(f"{path} {ast.unparse(call)[:80]}")
            continue
        bare += [f"{path}:{call.lineno} {code}" for code in found if code not in {*TABLE, *NOTHING_TO_DO}]
    assert bare == []
    assert [line.partition(" ")[0] for line in computed] == [
        "certs/alerts.py",  # two tables, see the next test
        "certs/alerts.py",
        "certs/peer.py",  # an identity that was not expected
    ]


@pytest.mark.parametrize(
    "reason", [*_REASONS, *(f"tls alert {name}" for name in (*_ALERTS, *_OTHER_ALERTS, "odd"))]
)
def test_every_failure_of_a_handshake_has_a_hint(reason: str) -> None:
    found = describe_failure(SSL.Error([("SSL routines", "", reason)]))
    assert found.hint
    assert found.code != "tls_protocol" or reason == "unexpected message"


@pytest.mark.parametrize("number", _VERIFICATION)
def test_every_failure_of_a_verification_has_a_hint(number: int) -> None:
    assert verification_failure(number, 0).hint


def test_tables_name_codes_that_exist_and_say_something() -> None:
    sources = "".join(
        path.read_text()
        for package in ("certs", "ztun", "waypoint")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "hints.py"
    )
    alerts = "".join(f'"alert_{suffix}"' for suffix in ("decrypt_error",))
    for code in (*TABLE, *NOTHING_TO_DO):
        assert f'"{code}"' in sources + alerts or f'"{code.removeprefix("alert_")}"' in sources, code
    assert not NOTHING_TO_DO & TABLE.keys()
    assert not certs.hints.HINTS.keys() & ztun.hints.HINTS.keys()
    for code, hint in TABLE.items():
        assert hint, code
        assert hint == hint.strip().rstrip("."), code


def test_hint_of_the_place_counts_before_that_of_the_code() -> None:
    assert ZtunError("tunnel_lost", "m", hint="mine").hint == "mine"
    assert ZtunError("tunnel_lost", "m").hint == TABLE["tunnel_lost"]
    assert ZtunError("tls_closed", "m").hint == certs.hints.HINTS["tls_closed"]
    assert IssuerError("ca_failed", "m").hint == TABLE["ca_failed"]
    assert ZtunError("shutdown", "m").hint == ""
