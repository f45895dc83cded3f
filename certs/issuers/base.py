"""What the store needs from a place where certificates come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certs.spiffe import SpiffeId

WorkloadKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate chain, leaf first and without its root, and the private key of the leaf."""

    chain: tuple[x509.Certificate, ...]
    key: WorkloadKey


@dataclass(frozen=True, slots=True)
class Trust:
    """Trusted roots and revocation lists, as the issuer has them now."""

    roots: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] = ()


class Change(Enum):
    """What may have changed at an issuer."""

    TRUST = "trust"
    CERTIFICATES = "certificates"


class Issuer(Protocol):
    """A source of certificates. Every method raises :class:`~certs.errors.CertError`, and nothing else."""

    async def obtain(self, identity: SpiffeId) -> Issued:
        """Get a certificate. Where the issuer signs requests, the key is made here and never leaves."""

    async def trust(self) -> Trust:
        """Get the roots and revocation lists."""

    async def watch(self, changed: Callable[[Change], None]) -> None:
        """Call ``changed`` whenever something may be new, until cancelled."""

    async def close(self) -> None:
        """Give back connections."""
