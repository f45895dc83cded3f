"""Metric families with few label sets: counters, gauges, histograms, and gauges read at the time of a scrape.

Like the traffic counters they are plain numbers written by the event loop and read, without a lock, by the
scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

MAX_LABEL_SETS = 1000  # codes and names come from our own tables; this is for the day one of them does not
OTHER = "other"

Labels: TypeAlias = tuple[str, ...]


class Counter:
    """A number that grows, per label set."""

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._values: dict[Labels, int] = {}

    def inc(self, *labels: str, by: int = 1) -> None:
        """Add to the label set given by the values of the labels, in order."""
        key = _capped(self._values, labels)
        self._values[key] = self._values.get(key, 0) + by

    def value(self, *labels: str) -> int:
        """What was counted so far."""
        return self._values.get(labels, 0)

    def collect(self) -> Metric:
        """The family for the exposition."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        return family


class Gauge:
    """A number that goes up and down, per label set."""

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._values: dict[Labels, float] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        """Add to the label set; a negative ``by`` takes away."""
        key = _capped(self._values, labels)
        self._values[key] = self._values.get(key, 0) + by

    def set(self, value: float, *labels: str) -> None:
        """Replace the value of the label set."""
        self._values[_capped(self._values, labels)] = value

    def value(self, *labels: str) -> float:
        """The value now."""
        return self._values.get(labels, 0)

    def collect(self) -> Metric:
        """The family for the exposition."""
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        return family


class Histogram:
    """How often values fell into which bucket, per label set. ``buckets`` are ascending upper bounds."""

    def __init__(self, name: str, help_text: str, buckets: Sequence[float], labels: Labels = ()) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._bounds = tuple(buckets)
        # One count per bucket, one for the values above all of them, and the sum.
        self._values: dict[Labels, list[float]] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        key = _capped(self._values, labels)
        cells = self._values.get(key)
        if cells is None:
            cells = self._values[key] = [0] * (len(self._bounds) + 2)
        cells[bisect_left(self._bounds, value)] += 1
        cells[-1] += value

    def collect(self) -> Metric:
        """The family for the exposition."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        names = [*map(str, self._bounds), "+Inf"]
        for labels, cells in list(self._values.items()):
            *counts, total = list(cells)
            running = 0.0
            buckets = []
            for name, count in zip(names, counts, strict=True):
                running += count
                buckets.append((name, running))
            family.add_metric(labels, buckets, total)
        return family


class ReadGauge:
    """A gauge that is read on the scrape's thread: ``read`` gives (label values, value) pairs."""

    def __init__(
        self, name: str, help_text: str, labels: Labels, read: Callable[[], Iterable[tuple[Labels, float]]]
    ) -> None:
        self._name, self._help, self._labels, self._read = name, help_text, labels, read

    def collect(self) -> Metric:
        """The family for the exposition."""
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self._read():
            family.add_metric(labels, value)
        return family


class ReadCounter:
    """A counter that somebody else keeps: ``read`` gives the total, on the scrape's thread."""

    def __init__(self, name: str, help_text: str, read: Callable[[], int]) -> None:
        self._name, self._help, self._read = name, help_text, read

    def collect(self) -> Metric:
        """The family for the exposition; empty while the total is zero."""
        family = CounterMetricFamily(self._name, self._help, labels=())
        if total := self._read():
            family.add_metric((), total)
        return family


Family: TypeAlias = Counter | Gauge | Histogram | ReadGauge | ReadCounter


def _capped(known: Mapping[Labels, object], labels: Labels) -> Labels:
    if labels in known or len(known) < MAX_LABEL_SETS:
        return labels
    return (OTHER,) * len(labels)
