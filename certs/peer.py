"""Who the other end of a tunnel is, and the rules by which it is accepted. Pure: no TLS, no clock.

Dates and signatures are OpenSSL's business during the handshake; here stand the rules of SPIFFE and of the
mesh. Source: X509-SVID sections 2, 4 and 5; ztunnel's peer verification.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from certs.bundle import ChainLink
from certs.hints import hint_for
from certs.spiffe import SpiffeError, SpiffeId
from certs.unreadable import UNREADABLE


@dataclass(frozen=True, slots=True)
class PeerExpectation:
    """Which peers are acceptable: one of ``identities``, or with None any workload of ``trust_domain``.

    Where both are given both must hold. An empty set accepts nobody. Raises ``ValueError`` when neither is
    given, because that would accept everybody.
    """

    identities: frozenset[SpiffeId] | None
    trust_domain: str | None = None

    def __post_init__(self) -> None:
        if self.identities is None and self.trust_domain is None:
            raise ValueError("an expectation names identities or a trust domain")


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A verified peer. ``chain`` holds the verified path without its root, for later checks of revocation."""

    identity: SpiffeId
    chain: tuple[ChainLink, ...]
    not_after: datetime


@dataclass(frozen=True, slots=True)
class TlsRejection:
    """Why a TLS session was refused, by us or by the peer. ``code`` is stable across releases."""

    code: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.hint:
            object.__setattr__(self, "hint", hint_for(self.code))

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What the rules need to know of one certificate; read once, since peers show the same one again."""

    link: ChainLink
    not_after: datetime
    is_authority: bool
    uri_names: tuple[str, ...]


def read_facts(certificate: x509.Certificate) -> CertificateFacts | TlsRejection:
    """Read what the rules need; a certificate that cannot be read is a rejection, never an exception."""
    try:
        extensions = certificate.extensions
        return CertificateFacts(
            (certificate.issuer.public_bytes(), certificate.serial_number),
            certificate.not_valid_after_utc,
            _may_sign(extensions),
            _uri_names(extensions),
        )
    except UNREADABLE as error:
        return TlsRejection("peer_chain", f"the peer's certificate cannot be read: {error}")


def leaf_identity(facts: CertificateFacts) -> SpiffeId | TlsRejection:
    """Give the identity of a leaf: it cannot sign others and has one URI name, which is a SPIFFE identity."""
    if facts.is_authority:
        return TlsRejection(
            "peer_chain",
            "the peer showed a CA certificate as its own",
            "a workload's certificate must not be able to sign others",
        )
    if len(facts.uri_names) != 1:
        return TlsRejection(
            "peer_uri_sans",
            f"the peer's certificate has {len(facts.uri_names)} URI names, exactly one is required",
            "its SPIFFE identity must be the only URI among the subject alternative names",
        )
    try:
        return SpiffeId.parse(facts.uri_names[0])
    except SpiffeError as error:
        return TlsRejection("peer_spiffe_grammar", f"the peer's identity is not a SPIFFE identity: {error}")


def judge_leaf(facts: CertificateFacts, expectation: PeerExpectation) -> SpiffeId | TlsRejection:
    """Apply the rules to a leaf whose chain is valid: one SPIFFE identity, and one that was expected."""
    identity = leaf_identity(facts)
    if isinstance(identity, TlsRejection):
        return identity
    if expectation.trust_domain is not None and identity.trust_domain != expectation.trust_domain:
        return TlsRejection(
            "peer_trust_domain",
            f"the peer {identity} is not of the trust domain {expectation.trust_domain}",
            "both ends must be of the same trust domain",
        )
    if expectation.identities is not None and identity not in expectation.identities:
        return TlsRejection("peer_identity_mismatch", *_mismatch(identity, expectation.identities))
    return identity


def _mismatch(identity: SpiffeId, expected: frozenset[SpiffeId]) -> tuple[str, str]:
    if not expected:
        return f"the peer is {identity}, but no identity is expected at this address", ""
    named = ", ".join(sorted(map(str, expected))[:3]) + (" ..." if len(expected) > 3 else "")
    return (
        f"the peer is {identity}, expected {named}",
        "the address may have moved to another workload, or its service account changed",
    )


def _may_sign(extensions: x509.Extensions) -> bool:
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return True
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.key_cert_sign or usage.crl_sign


def _uri_names(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
