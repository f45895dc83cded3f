"""What a proxy reports, kept as values that a test can wait for."""

from __future__ import annotations

import asyncio

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ztun.telemetry.access_log import ConnectionReport
from ztun.telemetry.metrics import Metrics


class Journal:
    """Takes the place of the access log: same calls, but the records stay here."""

    wants_opened = True

    def __init__(self) -> None:
        self.opens: list[ConnectionReport] = []
        self.ends: list[ConnectionReport] = []
        self.refusals: list[ConnectionReport] = []
        self._news = asyncio.Event()

    def opened(self, report: ConnectionReport) -> None:
        self.opens.append(report)
        self._tell()

    def complete(self, report: ConnectionReport) -> None:
        self.ends.append(report)
        self._tell()

    def failed(self, report: ConnectionReport) -> None:
        self.refusals.append(report)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def until(self, records: list[ConnectionReport], count: int) -> None:
        """Wait until a list has so many records."""
        while len(records) < count:
            await self._news.wait()

    async def end(self, number: int = 1) -> ConnectionReport:
        """The ``number``-th connection that ended."""
        await self.until(self.ends, number)
        return self.ends[number - 1]

    async def refusal(self, number: int = 1) -> ConnectionReport:
        """The ``number``-th connection that was turned away before it was tracked."""
        await self.until(self.refusals, number)
        return self.refusals[number - 1]


def code(report: ConnectionReport) -> str:
    """The stable code of the error in a record, empty when it has none."""
    return report.error.code if report.error is not None else ""


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of the samples of this name that carry these labels, as a scrape sees them."""
    return sum(
        one.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    )


def samples(metrics: Metrics, name: str) -> list[tuple[dict[str, str], float]]:
    """Every sample of this name."""
    return [
        (dict(one.labels), one.value)
        for family in text_string_to_metric_families(metrics.render().decode())
        for one in family.samples
        if one.name == name
    ]
