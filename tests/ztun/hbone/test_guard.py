"""The counters of the flood guard, without a connection."""

from __future__ import annotations

import pytest

from ztun.hbone.guard import (
    HOUR_SECONDS,
    WINDOW_SECONDS,
    Abuse,
    Budget,
    FloodGuard,
    GuardLimits,
    GuardTripped,
)

pytestmark = pytest.mark.unit


def guard(per_window: int, per_hour: int | None = None) -> FloodGuard:
    budget = Budget(per_window) if per_hour is None else Budget(per_window, per_hour)
    return FloodGuard(GuardLimits(budgets={Abuse.PING: budget, Abuse.SETTINGS: Budget(1)}))


def test_a_budget_may_be_spent_to_the_last() -> None:
    counter = guard(3)
    for _ in range(3):
        counter.count(Abuse.PING, 0.0)
    with pytest.raises(GuardTripped, match="more than 3 ping in 1 s") as caught:
        counter.count(Abuse.PING, 0.5)
    assert caught.value.abuse is Abuse.PING


def test_a_new_window_has_a_new_budget() -> None:
    counter = guard(3)
    for window in range(100):
        for _ in range(3):
            counter.count(Abuse.PING, window * WINDOW_SECONDS)


def test_an_hour_has_a_budget_of_its_own() -> None:
    counter = guard(3, 5)
    for hour in range(10):
        for window in range(5):
            counter.count(Abuse.PING, hour * HOUR_SECONDS + window * 600.0)
    with pytest.raises(GuardTripped, match="more than 5 ping in an hour"):
        counter.count(Abuse.PING, 9 * HOUR_SECONDS + 3599.0)


def test_each_abuse_has_its_own_count() -> None:
    counter = guard(3)
    for _ in range(3):
        counter.count(Abuse.PING, 0.0)
    counter.count(Abuse.SETTINGS, 0.0)
    with pytest.raises(GuardTripped):
        counter.count(Abuse.SETTINGS, 0.0)


def test_the_default_budgets_are_those_of_the_table() -> None:
    """sōzu's defaults where it has one."""
    limits = GuardLimits()
    assert limits.budgets[Abuse.RAPID_RESET] == Budget(100, 10_000)
    assert limits.budgets[Abuse.MADE_YOU_RESET].per_hour == 500
    assert limits.budgets[Abuse.PING].per_window == 100
    assert limits.budgets[Abuse.SETTINGS].per_window == 50
    assert limits.budgets[Abuse.EMPTY_DATA].per_window == 100
    assert limits.budgets[Abuse.WINDOW_UPDATE].per_window == 100
    assert limits.budgets[Abuse.GLITCH].per_window == 100
    assert limits.continuation_frames == 20
    assert limits.unsent_control_bytes == 65_536
