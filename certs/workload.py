"""The certificate of a local workload, and what is checked before one is taken into use."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from certs.errors import IssuerError
from certs.issuers.base import Issued, WorkloadKey
from certs.peer import TlsRejection, leaf_identity, read_facts
from certs.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class WorkloadCertificate:
    """A certificate of a local workload. ``chain`` is leaf first; ``generation`` grows with every renewal."""

    identity: SpiffeId
    chain: tuple[x509.Certificate, ...]
    key: WorkloadKey = field(repr=False)
    not_before: datetime
    not_after: datetime
    generation: int


def check_issued(identity: SpiffeId, issued: Issued, *, now: datetime) -> None:
    """Refuse what an issuer must not answer: a wrong identity, another key, a certificate out of date.

    Raises :class:`IssuerError`.
    """
    if not issued.chain:
        raise IssuerError("ca_no_certificate", "the issuer answered with no certificate")
    leaf = issued.chain[0]
    facts = read_facts(leaf)
    if isinstance(facts, TlsRejection):
        raise IssuerError("ca_bad_certificate", facts.message.replace("the peer's", "the issued"))
    if leaf_identity(facts) != identity:
        raise IssuerError(
            "ca_wrong_identity",
            f"the issued certificate does not carry exactly the identity {identity}",
            hint=f"it has {', '.join(facts.uri_names) or 'no URI name'}",
        )
    try:
        own = leaf.public_key() == issued.key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        own = False
    if not own:
        raise IssuerError("ca_wrong_key", "the issued certificate is for another key")
    if now < leaf.not_valid_before_utc:
        raise IssuerError(
            "ca_not_yet_valid",
            f"the issued certificate is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC",
            hint="check the clocks of the CA and of this machine",
        )
    if now >= leaf.not_valid_after_utc:
        raise IssuerError(
            "ca_expired_certificate",
            f"the issued certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
            hint="renew it, and check the clock",
        )
