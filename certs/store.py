"""The live certificates of a proxy, by identity: fetched once, renewed in time, kept while renewal fails.

One fetch is in flight per identity, a bounded number in all; a failing identity backs off alone. A
certificate is never handed out past its expiry. Source: ztunnel's secret manager.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from cryptography import x509

from certs.bundle import TrustBundle
from certs.errors import CertError, IssuerError
from certs.issuers.base import Change, Issued, Issuer
from certs.renewal import is_due, renew_at, retry_at
from certs.spiffe import SpiffeId
from certs.trust import FETCH_TIMEOUT_SECONDS, HeldTrust, unexpected
from certs.workload import WorkloadCertificate, check_issued

__all__ = ["CertificateEntry", "CertificateStore", "WorkloadCertificate", "wait_at_most", "wall_clock"]

MAX_FETCHES = 8  # in flight at once; ztunnel
MAX_BACKGROUND_FETCHES = 6  # of those, so that a connection that waits finds a place beside renewals
RECHECK_SECONDS = 30.0  # the longest look away from the wall clock: a machine that slept renews within this

Wait = Callable[[asyncio.Event, float], Awaitable[None]]
"""Returns when the event is set or after so many seconds, whichever is first."""

_log = structlog.get_logger("certs.store")


@dataclass(frozen=True, slots=True)
class CertificateEntry:
    """One line of the admin dump. ``state`` is ``Available``, ``Initializing`` or ``Unavailable: why``."""

    identity: SpiffeId
    state: str
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]


@dataclass(slots=True)
class _Entry:
    certificate: WorkloadCertificate | None = None
    task: asyncio.Task[None] | None = None
    failures: int = 0
    error: CertError | None = None
    due: datetime | None = None  # when the next fetch may start; None: at once

    def valid(self, now: datetime) -> WorkloadCertificate | None:
        """The certificate, if it is valid: also one that was fetched while the clock was ahead may not be yet."""
        held = self.certificate
        return held if held is not None and held.not_before <= now < held.not_after else None

    def is_due(self, now: datetime) -> bool:
        held = self.valid(now)
        return is_due(self.due, now, renew_at(held.not_before, held.not_after) if held is not None else None)


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


class CertificateStore:
    """Certificates of local workloads and the trust bundle. Used from one event loop; ``close`` it.

    ``run`` renews and follows the issuer's changes; without it certificates are fetched on demand only.
    """

    def __init__(
        self,
        issuer: Issuer,
        *,
        now: Callable[[], datetime],
        rng: random.Random,
        wait: Wait = wait_at_most,
    ) -> None:
        self._issuer = issuer
        self._now = now
        self._rng = rng
        self._wait = wait
        self._entries: dict[SpiffeId, _Entry] = {}
        self._generation = 0
        self._trust = HeldTrust(issuer, now=now, rng=rng)
        self._changes = 0
        self._slots = asyncio.Semaphore(MAX_FETCHES)
        self._wake = asyncio.Event()
        self._closed = False

    # What the data path asks.

    def peek(self, identity: SpiffeId) -> WorkloadCertificate | None:
        """Give the certificate if there is one that is valid at this moment."""
        entry = self._entries.get(identity)
        return entry.valid(self._now()) if entry is not None else None

    async def get(self, identity: SpiffeId) -> WorkloadCertificate:
        """Give a valid certificate, fetching it if need be; callers for one identity share one fetch.

        Raises :class:`CertError`; while the identity backs off that is its last failure, at once.
        """
        if self._trust.bundle is None:
            await self.start()
        certificate = self.peek(identity)
        if certificate is not None:
            return certificate
        if self._closed:
            raise CertError("store_closed", "the proxy is shutting down")
        entry = self._entries.setdefault(identity, _Entry())
        if entry.task is None:
            if entry.error is not None and not entry.is_due(self._now()):
                raise _again(entry.error)
            self._fetch_soon(identity, entry)
        assert entry.task is not None
        # The fetch belongs to the store: a caller that gives up does not take it from the others.
        await asyncio.wait({entry.task})
        certificate = self.peek(identity)
        if certificate is not None:
            return certificate
        if entry.error is not None:
            raise _again(entry.error)
        raise CertError("identity_forgotten", f"{identity} has no local workload any more")

    @property
    def bundle(self) -> TrustBundle:
        """Whom to trust now. Raises :class:`CertError` before the first :meth:`start` or :meth:`get`."""
        bundle = self._trust.bundle
        if bundle is None:
            raise CertError("bundle_missing", "the trust bundle has not been loaded")
        return bundle

    # What the owner of the proxy calls.

    async def start(self) -> None:
        """Load the trust bundle. Raises :class:`CertError` when the issuer has none."""
        await self._trust.start()

    def on_bundle(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called after the roots or the revocation lists changed."""
        self._trust.on_change.append(callback)

    def prefetch(self, identities: Collection[SpiffeId]) -> None:
        """Have :meth:`run` fetch these soon, before a connection needs them."""
        for identity in identities:
            self._entries.setdefault(identity, _Entry())
        self._wake.set()

    def retain(self, identities: Collection[SpiffeId]) -> None:
        """Forget every other identity and its key, and stop renewing it."""
        kept = set(identities)
        for identity in [known for known in self._entries if known not in kept]:
            entry = self._entries.pop(identity)
            if entry.task is not None:
                entry.task.cancel()

    def entries(self) -> list[CertificateEntry]:
        """List all identities, sorted, for the admin dump; there are no keys in it."""
        roots = self._trust.bundle.roots if self._trust.bundle is not None else ()
        return [
            CertificateEntry(
                identity,
                self._state(identity, entry),
                entry.certificate.chain if entry.certificate is not None else (),
                roots,
            )
            for identity, entry in sorted(self._entries.items())
        ]

    async def run(self) -> None:
        """Renew, retry and follow the issuer's changes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            while True:
                self._wake.clear()
                retry = await self._trust.refresh()
                renewal = self._renew_due()
                await self._wait(self._wake, renewal if retry is None else min(retry, renewal))

    async def close(self) -> None:
        """Stop all fetches and close the issuer."""
        self._closed = True
        tasks = {entry.task for entry in self._entries.values() if entry.task is not None}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._entries.clear()
        await self._issuer.close()

    # Renewal.

    def _renew_due(self) -> float:
        """Start what is due, the soonest to expire first; give the seconds until the next look."""
        now = self._now()
        pause = RECHECK_SECONDS
        due: list[tuple[datetime, SpiffeId]] = []
        running = 0
        for identity, entry in self._entries.items():
            if entry.task is not None:
                running += 1
            elif entry.due is None or entry.is_due(now):
                held = entry.valid(now)
                due.append((held.not_after if held is not None else now, identity))
            else:
                pause = min(pause, (entry.due - now).total_seconds())
        # What does not fit now is started when one of the running ones ends, which wakes the loop.
        for _, identity in sorted(due)[: max(0, MAX_BACKGROUND_FETCHES - running)]:
            self._fetch_soon(identity, self._entries[identity])
        return pause

    def _fetch_soon(self, identity: SpiffeId, entry: _Entry) -> None:
        entry.task = asyncio.create_task(self._fetch(identity, entry), name=f"certificate {identity}")

    async def _fetch(self, identity: SpiffeId, entry: _Entry) -> None:
        """Fetch once; the outcome is left in the entry, so nothing is raised to nobody."""
        changes = self._changes
        try:
            async with self._slots, asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                issued = await self._issuer.obtain(identity)
            check_issued(identity, issued, now=self._now())
        except TimeoutError:
            late = f"the issuer did not answer within {FETCH_TIMEOUT_SECONDS:g} s"
            self._failed(identity, entry, IssuerError("ca_timeout", late))
        except CertError as error:
            self._failed(identity, entry, error)
        except Exception as error:  # an issuer is a seam: its mistakes must cost no more than this fetch
            self._failed(identity, entry, unexpected(error))
        else:
            self._succeeded(identity, entry, issued, outdated=changes != self._changes)
        finally:
            entry.task = None
            self._wake.set()

    def _succeeded(self, identity: SpiffeId, entry: _Entry, issued: Issued, *, outdated: bool) -> None:
        now = self._now()
        leaf = issued.chain[0]
        not_before, not_after = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        entry.error = None
        if entry.certificate is not None and entry.certificate.chain == issued.chain:
            # Somebody else renews this one and has not yet: look again, less and less often.
            entry.failures += 1
        else:
            entry.failures = 0
            self._generation += 1
            entry.certificate = WorkloadCertificate(
                identity, issued.chain, issued.key, not_before, not_after, self._generation
            )
        half = renew_at(not_before, not_after)
        if outdated:
            entry.due = None
        else:
            entry.due = half if half > now else retry_at(now, entry.failures + 1, not_after, self._rng)

    def _failed(self, identity: SpiffeId, entry: _Entry, error: CertError) -> None:
        now = self._now()
        held = entry.valid(now)
        valid_until = held.not_after if held is not None else None
        entry.failures += 1
        entry.error = error
        entry.due = retry_at(now, entry.failures, valid_until, self._rng)
        _log.warning(
            "no certificate",
            identity=str(identity),
            code=error.code,
            error=str(error),
            hint=error.hint,
            retry_seconds=round((entry.due - now).total_seconds(), 1),
            valid_until=valid_until.isoformat() if valid_until is not None else None,
        )

    def _state(self, identity: SpiffeId, entry: _Entry) -> str:
        if self.peek(identity) is not None:
            return "Available"
        if entry.error is not None:
            return f"Unavailable: {entry.error}"
        if entry.certificate is None:
            return "Initializing"
        early = self._now() < entry.certificate.not_before
        return f"Unavailable: the certificate {'is not valid yet' if early else 'has expired'}"

    # The issuer's changes.

    async def _follow(self) -> None:
        """Hear of the issuer's changes; a watch that fails is started anew, and everything is asked for again."""
        while True:
            try:
                await self._issuer.watch(self._changed)
                return
            except Exception as error:  # as in _fetch
                failure = error if isinstance(error, CertError) else unexpected(error)
                _log.warning("issuer not watched", code=failure.code, error=str(failure), hint=failure.hint)
            await self._wait(asyncio.Event(), RECHECK_SECONDS)
            self._changed(Change.TRUST)
            self._changed(Change.CERTIFICATES)

    def _changed(self, change: Change) -> None:
        if change is Change.TRUST:
            self._trust.doubt()
        else:
            self._changes += 1
            for entry in self._entries.values():
                entry.due = None
        self._wake.set()


def _again(error: CertError) -> CertError:
    """The same failure for another caller: a raised exception collects the traceback of whoever raised it."""
    return CertError(error.code, str(error), hint=error.hint)


def wall_clock() -> datetime:
    """The time of this machine, aware, in UTC."""
    return datetime.now(UTC)
