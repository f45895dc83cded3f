"""Endpoints that keep failing are left alone for a while (``outlierDetection``).

Algorithm, after Envoy's outlier detection for consecutive errors:

1. A failed connect counts; a successful one resets the count.
2. At the threshold the endpoint is ejected, unless more than ``max_ejection_percent`` of the endpoints already are. One
   endpoint may always be ejected.
3. An ejection lasts ``base_ejection_time`` times the number of ejections in a row, at most 300 seconds.
4. Every ``interval`` in which an endpoint was not ejected takes one from that number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ztun.traffic.balancers import EndpointKey
from ztun.traffic.policy import OutlierPolicy

MAX_EJECTION_SECONDS = 300.0  # Envoy's max_ejection_time


@dataclass(slots=True)
class _Record:
    failures: int = 0
    multiplier: int = 0
    ejected_until: float = 0.0
    decayed_at: float = 0.0


class OutlierDetector:
    """The state of the endpoints of one cluster. Times are seconds of any clock that never goes back."""

    def __init__(self, policy: OutlierPolicy) -> None:
        self._policy = policy
        self._records: dict[EndpointKey, _Record] = {}
        self._total = 0

    def retain(self, keys: Iterable[EndpointKey]) -> None:
        """Tell which endpoints there are; others are forgotten."""
        known = set(keys)
        self._total = len(known)
        self._records = {key: record for key, record in self._records.items() if key in known}

    def is_ejected(self, key: EndpointKey, now: float) -> bool:
        """Whether the endpoint is to be left alone at this moment."""
        record = self._records.get(key)
        return record is not None and now < record.ejected_until

    def succeeded(self, key: EndpointKey) -> None:
        """A connection was made."""
        record = self._records.get(key)
        if record is not None:
            record.failures = 0

    def failed(self, key: EndpointKey, now: float) -> bool:
        """A connect failed; whether the endpoint is ejected because of it."""
        threshold = self._policy.consecutive_errors
        if threshold <= 0:
            return False
        record = self._records.setdefault(key, _Record(decayed_at=now))
        record.failures += 1
        if record.failures < threshold or now < record.ejected_until or not self._may_eject(now):
            return False
        self._decay(record, now)
        record.failures = 0
        record.multiplier += 1
        duration = min(self._policy.base_ejection_time * record.multiplier, MAX_EJECTION_SECONDS)
        record.ejected_until = record.decayed_at = now + duration
        return True

    def _may_eject(self, now: float) -> bool:
        ejected = sum(1 for record in self._records.values() if now < record.ejected_until)
        return ejected == 0 or (ejected + 1) * 100 <= self._policy.max_ejection_percent * self._total

    def _decay(self, record: _Record, now: float) -> None:
        if self._policy.interval > 0 and now > record.decayed_at:
            quiet = int((now - record.decayed_at) // self._policy.interval)
            record.multiplier = max(record.multiplier - quiet, 0)
