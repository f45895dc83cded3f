"""Whom to trust: root certificates and revocation lists, as one immutable value with a generation.

A root is added and retired by making the next generation. A tunnel that stands keeps standing: only its
chain is judged again, by :meth:`TrustBundle.is_revoked`. Source: SPIFFE Trust Domain and Bundle section 4;
ztunnel's CRL_PATH.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from OpenSSL import crypto

from certs.errors import BundleError
from certs.unreadable import UNREADABLE

MAX_BUNDLE_BYTES = 1024 * 1024  # about 500 roots of 2 kB; a trust domain has one to three
MAX_CRL_BYTES = 16 * 1024 * 1024  # about 400,000 revoked serials

ChainLink = tuple[bytes, int]
"""One certificate of a verified path as a revocation list names it: issuer name in DER, serial number."""


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """Trusted roots and the revocation lists that apply below them.

    A certificate that no list mentions is allowed, and a list past its ``nextUpdate`` still counts:
    revocation adds refusals and its absence is no reason to stop a mesh (ztunnel does the same).
    ``generation`` grows with every change. Raises :class:`BundleError` when a root is no CA certificate, a list has a
    wrong signature, or either is damaged.
    """

    generation: int
    roots: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    _revoked: frozenset[ChainLink] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.roots:
            raise BundleError(
                "bundle_empty",
                "the trust bundle has no root certificate",
                hint="without one no peer can be verified",
            )
        for root in self.roots:
            _require_authority(root)
        for crl in self.crls:
            _require_signature(crl, self.roots)
        revoked = frozenset(
            (issuer, entry.serial_number)
            for crl in self.crls
            for issuer in (crl.issuer.public_bytes(),)  # once for each list: it may have 100,000 entries
            for entry in crl
        )
        object.__setattr__(self, "_revoked", revoked)

    @property
    def revokes_anything(self) -> bool:
        """Whether any list names a certificate; without one the check of a chain costs nothing."""
        return bool(self._revoked)

    def is_revoked(self, chain: Iterable[ChainLink]) -> bool:
        """Whether a list names a certificate of this verified path. Pure and cheap; for live tunnels too."""
        return bool(self._revoked) and any(link in self._revoked for link in chain)

    def same_trust(self, other: TrustBundle) -> bool:
        """Whether both trust the same roots and revoke the same certificates."""
        return set(self.roots) == set(other.roots) and self._revoked == other._revoked

    def with_root(self, root: x509.Certificate) -> TrustBundle:
        """Trust one root more; what is trusted now stays trusted. Adding a known root changes nothing."""
        if root in self.roots:
            return self
        return TrustBundle(self.generation + 1, (*self.roots, root), self.crls)

    def without_root(self, root: x509.Certificate) -> TrustBundle:
        """Retire a root. Raises :class:`BundleError` when it is the last one."""
        if root not in self.roots:
            return self
        return TrustBundle(
            self.generation + 1, tuple(known for known in self.roots if known != root), self.crls
        )

    def with_crls(self, crls: Iterable[x509.CertificateRevocationList]) -> TrustBundle:
        """Replace the revocation lists."""
        return TrustBundle(self.generation + 1, self.roots, tuple(crls))


def parse_certificates(pem: bytes, *, name: str) -> tuple[x509.Certificate, ...]:
    """Read one or more PEM certificates; ``name`` says where they came from. Raises :class:`BundleError`.

    Their names are readable; who reads keys or extensions must expect that those are damaged.
    """
    if len(pem) > MAX_BUNDLE_BYTES:
        raise BundleError("certificates_too_large", f"{name}: longer than {MAX_BUNDLE_BYTES} bytes")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        for certificate in certificates:
            _read_names(certificate)
    except UNREADABLE:
        raise BundleError("certificates_unreadable", f"{name}: no readable PEM certificate") from None
    return certificates


def parse_crls(data: bytes, *, name: str) -> tuple[x509.CertificateRevocationList, ...]:
    """Read revocation lists, PEM (any number) or DER (one); an empty file revokes nothing.

    What revocation goes by is readable afterwards: issuer and serial numbers. Raises :class:`BundleError`.
    """
    if len(data) > MAX_CRL_BYTES:
        raise BundleError("crl_too_large", f"{name}: longer than {MAX_CRL_BYTES} bytes")
    if not data.strip():
        return ()
    begin, end = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
    try:
        if begin in data:
            blocks = data.split(begin)[1:]
            crls = [x509.load_pem_x509_crl(begin + block.partition(end)[0] + end) for block in blocks]
        else:
            crls = [x509.load_der_x509_crl(data)]
        for crl in crls:
            _read_entries(crl)
    except UNREADABLE:
        raise BundleError("crl_unreadable", f"{name}: neither a PEM nor a DER revocation list") from None
    return tuple(crls)


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Write certificates one after the other as PEM."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def crls_pem(crls: Iterable[x509.CertificateRevocationList]) -> bytes:
    """Write revocation lists one after the other as PEM."""
    return b"".join(crl.public_bytes(serialization.Encoding.PEM) for crl in crls)


def is_signed_by(certificate: x509.Certificate, signer: x509.Certificate) -> bool:
    """Whether ``signer`` signed ``certificate`` directly; dates and usages are not looked at."""
    try:
        certificate.verify_directly_issued_by(signer)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _read_names(certificate: x509.Certificate) -> None:
    """``cryptography`` reads the parts when they are asked for: here, where the name of the file is known."""
    certificate.subject.public_bytes()
    certificate.issuer.public_bytes()


def _read_entries(crl: x509.CertificateRevocationList) -> None:
    """As ``_read_names``. An entry that is skipped would be a certificate that stays valid, so all are read."""
    crl.issuer.public_bytes()
    for entry in crl:
        entry.serial_number  # noqa: B018


def _require_authority(root: x509.Certificate) -> None:
    try:
        is_authority = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *UNREADABLE):
        is_authority = False
    if not is_authority:
        name = root.subject.rfc4514_string() or hex(root.serial_number)
        raise BundleError(
            "bundle_not_a_ca",
            f"the certificate {name} is no CA certificate",
            hint="the bundle holds root certificates, not those of workloads",
        )
    try:
        # It is OpenSSL that will verify with it, and it takes less than the reader above.
        crypto.X509.from_cryptography(root)
    except crypto.Error:
        name = hex(root.serial_number)
        raise BundleError(
            "bundle_root_unreadable", f"OpenSSL cannot read the root certificate {name}"
        ) from None


def _require_signature(crl: x509.CertificateRevocationList, roots: tuple[x509.Certificate, ...]) -> None:
    """Refuse a list that claims to be of a root of ours and is not; those of intermediates are taken.

    The file is as trusted as the roots beside it, and a wrong list can only refuse, never admit.
    """
    issuers = [root for root in roots if root.subject == crl.issuer]
    if not issuers:
        return
    for root in issuers:
        try:
            if crl.is_signature_valid(root.public_key()):  # type: ignore[arg-type]
                return
        except (InvalidSignature, *UNREADABLE):
            continue
    raise BundleError(
        "crl_signature",
        f"the revocation list of {crl.issuer.rfc4514_string()} is not signed by that root",
        hint="it was changed, or it belongs to another CA of the same name",
    )
