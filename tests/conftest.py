"""What all tests share: the event loop they run on, what stays together, and a summary of what ran in each tier."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping

import pytest
import uvloop
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TIERS = ("unit", "net", "peer", "netns", "docker", "soak", "fuzz")
NO_TIER = "(no tier)"
SHARED = ("tests/e2e/", "tests/ztun/nodes/")  # fixtures of these packages last longer than a module
PATIENCE = 0.9  # of the limit of a test; the rest is left for its clean-up before pytest-timeout ends the run


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asyncio test runs on the loop that the proxies run on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # A report carries no markers of its own, only these properties.
        item.user_properties.append(("tier", tier_of(item)))
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = bounded(item.obj, seconds_allowed(item) * PATIENCE)


class Rooms(LoadScopeScheduling):
    """What stays in one process when a run has several: all that shares containers or namespaces, else a module."""

    def _split_scope(self, nodeid: str) -> str:
        return next((room for room in SHARED if nodeid.startswith(room)), nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Rooms:
    """Used by ``--dist loadscope``."""
    return Rooms(config, log)


def seconds_allowed(item: pytest.Item) -> float:
    """The limit of a test: its own ``timeout`` marker, else the one of the configuration."""
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return float(item.config.getini("timeout"))
    return float(marker.args[0] if marker.args else marker.kwargs["timeout"])


def bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """End a coroutine that waits for something that never comes, with the line where it waited.

    uvloop does not let an exception out of a signal handler, so the signal of pytest-timeout cannot end such
    a test; its thread would end the whole run.
    """

    @functools.wraps(test)
    async def limited(*arguments: object, **fixtures: object) -> None:
        async with asyncio.timeout(seconds):
            await test(*arguments, **fixtures)

    return limited


def tier_of(item: pytest.Item) -> str:
    """The most demanding tier that a test is marked with."""
    return next((tier for tier in reversed(TIERS) if item.get_closest_marker(tier)), NO_TIER)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes, reasons = count_by_tier(
        (outcome, report)
        for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        for report in terminalreporter.stats.get(outcome, ())
        if isinstance(report, pytest.TestReport)
    )
    if not outcomes:
        return
    terminalreporter.section("tiers")
    for tier in (*TIERS, NO_TIER):
        if tier in outcomes:
            counts = outcomes[tier]
            skipped = counts.pop("skipped", 0)
            others = "".join(
                f", {number} {name}" for name, number in sorted(counts.items()) if name != "passed"
            )
            ran = sum(counts.values())
            terminalreporter.line(f"{tier:<10} {ran:>6} ran{others}, {skipped} skipped")
            for reason, number in sorted(reasons[tier].items()):
                terminalreporter.line(f"{'':<10} {number:>6} skipped: {reason}")
        elif tier != NO_TIER:
            terminalreporter.line(f"{tier:<10}      0 ran (none selected)")


def count_by_tier(
    reports: Iterable[tuple[str, pytest.TestReport]],
) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Outcomes per tier, and the reasons of what was skipped per tier."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome, report in reports:
        tier = str(dict(report.user_properties).get("tier", NO_TIER))
        outcomes[tier][outcome] += 1
        if outcome == "skipped":
            detail = report.longrepr
            text = str(detail[2]) if isinstance(detail, tuple) else str(detail)
            reasons[tier][text.removeprefix("Skipped: ")] += 1
    return outcomes, reasons
