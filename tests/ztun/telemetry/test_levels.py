from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztun.errors import ConfigError
from ztun.telemetry.levels import DEBUG, ERROR, INFO, MAX_SCOPES, TRACE, WARN, Levels

pytestmark = pytest.mark.unit


def test_the_longest_scope_wins() -> None:
    levels = Levels("warn,proxy=debug,proxy::inbound=error")
    assert not levels.enabled("access", INFO)
    assert levels.enabled("access", WARN)
    assert levels.enabled("proxy", DEBUG)
    assert levels.enabled("proxy::outbound", DEBUG)
    assert not levels.enabled("proxy::inbound::stream", WARN)
    assert levels.enabled("proxy::inbound", ERROR)
    assert not levels.enabled("proxyish", DEBUG)


def test_a_change_takes_effect_at_once_and_reset_undoes_it() -> None:
    levels = Levels("info")
    assert not levels.enabled("proxy", TRACE)
    levels.update("proxy=trace,access=off")
    assert levels.enabled("proxy", TRACE)
    assert not levels.enabled("access", ERROR)
    assert str(levels) == "info,access=off,proxy=trace"
    levels.update("debug")
    assert str(levels) == "debug,access=off,proxy=trace"
    levels.reset("dns=warn")
    assert str(levels) == "info,dns=warn"
    levels.reset()
    assert str(levels) == "info"


@pytest.mark.parametrize(
    "text", ["loud", "proxy=loud", "=debug", "a b=debug", "proxy:debug", "", ",", "x=y=debug"]
)
def test_nonsense_is_refused_and_changes_nothing(text: str) -> None:
    levels = Levels("warn")
    with pytest.raises(ConfigError):
        levels.update(text)
    assert str(levels) == "warn"


@given(st.text(alphabet="ab=,:. \ninfowardebug\0é", max_size=40))
def test_any_text_is_taken_or_refused_as_a_whole(text: str) -> None:
    levels = Levels("warn")
    try:
        levels.update(text)
    except ConfigError as error:
        assert error.hint
        assert str(levels) == "warn"
    else:
        assert str(Levels(str(levels))) == str(levels)


def test_the_number_of_scopes_is_bounded() -> None:
    levels = Levels()
    levels.update(",".join(f"s{number}=debug" for number in range(MAX_SCOPES - 1)))
    with pytest.raises(ConfigError):
        levels.update("one_more=debug")
    assert not levels.enabled("one_more", DEBUG)
