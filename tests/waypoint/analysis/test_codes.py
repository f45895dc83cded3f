"""The table of codes is complete: what the source reports is in it, and what is in it is reported somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from waypoint.analysis.codes import CODES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
CODE = re.compile(
    r"[A-Z]{2,6}(?:-[A-Z0-9]+)+|IST\d{4}|DURATION|HOSTBITS|SCHEMA|YAML|FILE|KIND|DUPLICATE", re.ASCII
)
NOT_CODES = ("ECDHE-", "DES-", "GRPC-")
"""Ciphers and protocols are spelt like codes."""


def reported(package: str) -> set[str]:
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        if path.name == "codes.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found.add(node.value)
    return {code for code in found if not code.startswith(NOT_CODES)}


def test_every_code_that_is_reported_is_in_the_table() -> None:
    assert reported("waypoint") <= set(CODES)


def test_every_code_in_the_table_is_reported() -> None:
    assert set(CODES) <= reported("waypoint") | reported("ztun/resources") | reported("ztun/mesh")


def test_every_code_says_what_it_means() -> None:
    assert all(code.meaning and not code.meaning.endswith(".") for code in CODES.values())
