"""The trust bundle of a proxy as its issuer last gave it, kept while newer ones cannot be used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime

import structlog

from certs.bundle import TrustBundle
from certs.errors import CertError, IssuerError
from certs.issuers.base import Issuer
from certs.renewal import is_due, retry_at

FETCH_TIMEOUT_SECONDS = 10.0  # a connection waits for this; ztunnel has no deadline here

_log = structlog.get_logger("certs.store")


class HeldTrust:
    """The current bundle, None before the first one. ``on_change`` is called after roots or lists changed."""

    def __init__(self, issuer: Issuer, *, now: Callable[[], datetime], rng: random.Random) -> None:
        self.bundle: TrustBundle | None = None
        self.on_change: list[Callable[[], None]] = []
        self._issuer = issuer
        self._now = now
        self._rng = rng
        self._lock = asyncio.Lock()
        self._stale = False
        self._failures = 0
        self._due: datetime | None = None  # when a load that failed may be tried again; None: at once

    async def start(self) -> None:
        """Load the first bundle. Raises :class:`CertError` when the issuer has none."""
        async with self._lock:
            if self.bundle is None:
                self.bundle = await self._load(generation=1)

    def doubt(self) -> None:
        """Have the next :meth:`refresh` load, also while an earlier failure backs off: the reason may be gone."""
        self._stale, self._due = True, None

    async def refresh(self) -> float | None:
        """Load what may have changed, unless that backs off; give the seconds to the next try, None if none is due."""
        if (self._stale or self.bundle is None) and is_due(self._due, self._now()):
            await self._take()
        if not self._stale:
            return None
        return max(0.0, (self._due - self._now()).total_seconds()) if self._due is not None else 0.0

    async def _take(self) -> None:
        """Take the issuer's new roots and lists; what cannot be used leaves the old ones in force, and is retried."""
        self._stale, self._due = False, None  # before the load: a change during it is one more
        try:
            async with self._lock:
                generation = self.bundle.generation + 1 if self.bundle is not None else 1
                fresh = await self._load(generation)
        except CertError as error:
            now = self._now()
            self._failures += 1
            due = now if self._stale else retry_at(now, self._failures, None, self._rng)
            self._stale, self._due = True, due
            _log.warning(
                "trust bundle not reloaded",
                code=error.code,
                error=str(error),
                hint=error.hint,
                retry_seconds=round((due - now).total_seconds(), 1),
            )
            return
        self._failures = 0
        if self.bundle is not None and self.bundle.same_trust(fresh):
            return
        self.bundle = fresh
        _log.info("trust bundle", generation=fresh.generation, roots=len(fresh.roots), crls=len(fresh.crls))
        for callback in self.on_change:
            callback()

    async def _load(self, generation: int) -> TrustBundle:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                trust = await self._issuer.trust()
        except TimeoutError:
            raise IssuerError("ca_timeout", "the issuer did not give its trust bundle in time") from None
        except CertError:
            raise
        except Exception as error:  # an issuer is a seam: its mistakes must cost no more than this load
            raise unexpected(error) from error
        return TrustBundle(generation, trust.roots, trust.crls)


def unexpected(error: Exception) -> IssuerError:
    """A mistake of an issuer, which raises :class:`CertError` and nothing else, as the failure that it is."""
    return IssuerError("ca_failed", f"the issuer failed: {type(error).__name__}: {error}")
