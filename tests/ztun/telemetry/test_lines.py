from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.telemetry.lines import Bare, json_line, text_line, timestamp

pytestmark = pytest.mark.unit

WHEN = 1_700_000_000.123456


def test_the_text_form_is_ztunnel_s() -> None:
    line = text_line(
        WHEN,
        "info",
        "proxy",
        "hello",
        [("addr", Bare("10.0.0.1:80")), ("name", "a b"), ("count", 3), ("ok", True)],
        [("proxy", {"wl": Bare("default/echo")}), ("outbound", {"id": Bare("abc")})],
    )
    assert line == (
        "2023-11-14T22:13:20.123456Z\tinfo\tproxy:proxy{wl=default/echo}:outbound{id=abc}\thello\t"
        'addr=10.0.0.1:80 name="a b" count=3 ok=true'
    )
    assert (
        text_line(WHEN, "warn", "xds", "no fields", []) == "2023-11-14T22:13:20.123456Z\twarn\txds\tno fields"
    )


def test_the_json_form_has_flat_fields_and_nested_spans() -> None:
    line = json_line(WHEN, "info", "proxy", "hello", [("a.b", 1), ("level", "x")], [("proxy", {"wl": "d/e"})])
    assert json.loads(line) == {
        "level": "info",
        "time": "2023-11-14T22:13:20.123456Z",
        "scope": "proxy",
        "message": "hello",
        "a.b": 1,
        "field.level": "x",
        "proxy": {"wl": "d/e"},
    }


def test_a_rounded_microsecond_carries_into_the_second() -> None:
    assert timestamp(1_699_999_999.9999999) == "2023-11-14T22:13:20.000000Z"


def test_an_address_with_other_characters_is_quoted() -> None:
    line = text_line(WHEN, "info", "access", "m", [("a", Bare('1.1.1.1:1 b="x"\n'))])
    assert line.endswith('\tm\ta="1.1.1.1:1 b=\\"x\\"\\n"')


@given(message=st.text(), value=st.text(), address=st.text())
def test_no_value_can_end_the_line_or_add_a_field(message: str, value: str, address: str) -> None:
    line = text_line(WHEN, "info", "access", message, [("v", value), ("a", Bare(address)), ("last", 1)])
    assert len(line.splitlines()) == 1
    head, level, scope, _, fields = line.split("\t")
    assert (head, level, scope) == ("2023-11-14T22:13:20.123456Z", "info", "access")
    outside, inside, escaped = "", False, False
    for character in fields:
        if inside and escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
        elif not inside:
            outside += character
    assert not inside
    assert outside.count("=") == 3
    assert outside.endswith(" last=1")
    line.encode()


@given(message=st.text(), value=st.text())
def test_json_carries_every_text_on_one_line(message: str, value: str) -> None:
    line = json_line(WHEN, "info", "access", message, [("v", value)])
    assert len(line.splitlines()) == 1
    assert "\x7f" not in line
    read = json.loads(line)
    assert (read["message"], read["v"]) == (message, value)
