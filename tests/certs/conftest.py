from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from certs.authority import CertificateAuthority, create_authority
from certs.issuers import Change, Issued, Trust
from certs.request import build_request, new_key
from certs.spiffe import SpiffeId

START = datetime(2030, 1, 1, tzinfo=UTC)


def workload(name: str, trust_domain: str = "cluster.local") -> SpiffeId:
    return SpiffeId(trust_domain, "default", name)


@dataclass
class Clock:
    """A wall clock that moves only when told to."""

    at: datetime = START

    def __call__(self) -> datetime:
        return self.at

    def advance(self, **amount: float) -> None:
        self.at += timedelta(**amount)


@dataclass
class MemoryIssuer:
    """A real CA in memory; it can be told to fail, and to wait at a gate."""

    now: Callable[[], datetime]
    authority: CertificateAuthority
    lifetime: timedelta = timedelta(hours=24)
    error: Exception | None = None
    asked: list[SpiffeId] = field(default_factory=list)
    gate: Callable[[], object] | None = None
    running: int = 0
    most_running: int = 0
    changed: Callable[[Change], None] | None = None

    async def obtain(self, identity: SpiffeId) -> Issued:
        self.asked.append(identity)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate()  # type: ignore[misc]
            if self.error is not None:
                raise self.error
            key = new_key()
            request = build_request(key, identity)
            chain = self.authority.sign(request, identity, now=self.now(), lifetime=self.lifetime)
            return Issued(chain, key)
        finally:
            self.running -= 1

    async def trust(self) -> Trust:
        if self.error is not None:
            raise self.error
        return Trust(self.authority.roots, self.authority.crls)

    async def watch(self, changed: Callable[[Change], None]) -> None:
        self.changed = changed

    async def close(self) -> None:
        self.changed = None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


@pytest.fixture
def authority(clock: Clock) -> CertificateAuthority:
    return create_authority(now=clock())


@pytest.fixture
def issuer(clock: Clock, authority: CertificateAuthority) -> Iterator[MemoryIssuer]:
    yield MemoryIssuer(clock, authority)


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)
