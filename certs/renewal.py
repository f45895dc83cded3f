"""When to renew a certificate and when to try again after a failure. Pure: the clock and the dice are given.

Wall clock, because a machine that slept must renew when it wakes: a monotonic clock stands still meanwhile.
Source: ztunnel's secret manager (half life, backoff, jitter).
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta

FIRST_RETRY_SECONDS = 0.5  # doubled before the first use, so the first retry is after about 1 s, as ztunnel's
MAX_RETRY_SECONDS = 150.0  # ztunnel
RETRY_JITTER = 0.2  # ztunnel: plus or minus a fifth, so that a thousand proxies do not come back at once


def renew_at(not_before: datetime, not_after: datetime) -> datetime:
    """Half of the lifetime."""
    return not_before + (not_after - not_before) / 2


def retry_at(now: datetime, failures: int, not_after: datetime | None, rng: random.Random) -> datetime:
    """When to try again after the ``failures``-th failure in a row.

    The delay doubles with each failure up to ``MAX_RETRY_SECONDS``. It never reaches past ``not_after``,
    the expiry of the certificate still in use: at that moment one more attempt is made.
    """
    # The exponent is bounded too: 2.0 ** 1024 overflows.
    delay = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures, 32), MAX_RETRY_SECONDS)
    delay *= rng.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)
    at = now + timedelta(seconds=min(delay, MAX_RETRY_SECONDS))
    return min(at, not_after) if not_after is not None and not_after > now else at


def is_due(due: datetime | None, now: datetime, renewal: datetime | None = None) -> bool:
    """Whether it is time; ``due`` None is at once, ``renewal`` is when the certificate in use is to be renewed.

    What is due later than any retry from now on, and than that renewal, was set while the clock was ahead.
    """
    if due is None or due <= now:
        return True
    latest = now + timedelta(seconds=MAX_RETRY_SECONDS)
    return due > (max(latest, renewal) if renewal is not None else latest)
