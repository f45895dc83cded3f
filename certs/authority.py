"""The certificate authority: a root, optionally an intermediate, leaves for workloads, revocation lists.

Leaves carry one critical URI SAN, an empty subject and no CN, serve as client and server, and are backdated
a little so that a peer whose clock is behind accepts them. Source: X509-SVID sections 2 to 5; ztunnel's
certificates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.bundle import is_signed_by
from certs.errors import AuthorityError
from certs.request import check_request, new_key
from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from certs.unreadable import UNREADABLE

LEAF_LIFETIME = timedelta(hours=24)  # ztunnel: SECRET_TTL
MAX_LEAF_LIFETIME = timedelta(days=90)  # istiod: MAX_WORKLOAD_CERT_TTL
MIN_ASKED_LIFETIME = timedelta(seconds=10)  # renewed at half of it: more than a CA takes to answer
ROOT_LIFETIME = timedelta(days=3650)  # istiod: CITADEL_SELF_SIGNED_CA_CERT_TTL
INTERMEDIATE_LIFETIME = timedelta(days=730)  # the intermediates of Istio's own make targets
CLOCK_SKEW = timedelta(minutes=2)  # istiod backdates by the same ClockSkewGracePeriod
CRL_LIFETIME = timedelta(days=30)  # told to others; nothing here enforces it

AuthorityKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """One signing certificate with its key, and what goes with every leaf it signs.

    ``chain`` is sent after the leaf (intermediates and, during a rotation, the new root signed by the old
    one); ``roots`` is what everybody trusts; ``crls`` holds at most one list per issuer. Immutable: each
    change gives the next authority. Raises :class:`AuthorityError` when the parts do not belong together.
    """

    certificate: x509.Certificate
    key: AuthorityKey
    roots: tuple[x509.Certificate, ...]
    chain: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()

    def __post_init__(self) -> None:
        try:
            matching = self.certificate.public_key() == self.key.public_key()
            _ = self.certificate.extensions
        except UNREADABLE as error:
            raise AuthorityError(
                "ca_certificate_unreadable", f"the CA certificate cannot be read: {error}"
            ) from None
        if not matching:
            raise AuthorityError(
                "ca_key_mismatch",
                "the CA key does not belong to the CA certificate",
                hint="ca-key.pem and ca-cert.pem must come from the same CA",
            )
        if not self.roots:
            raise AuthorityError("ca_no_root", "the CA has no root certificate")

    @property
    def trust_domain(self) -> str | None:
        """The only trust domain this CA signs for; None when its certificate names none (made elsewhere)."""
        try:
            names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return None
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return (
            uris[0].removeprefix("spiffe://") if len(uris) == 1 and uris[0].startswith("spiffe://") else None
        )

    def sign(
        self,
        request: x509.CertificateSigningRequest,
        identity: SpiffeId,
        *,
        now: datetime,
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> tuple[x509.Certificate, ...]:
        """Sign a workload's request; gives the chain, leaf first, without the root.

        ``identity`` is what the caller may have. Raises :class:`~certs.errors.RequestError` when the
        request lacks proof of possession or names something else, :class:`AuthorityError` for a foreign
        trust domain, a lifetime out of range or an expired CA.
        """
        check_request(request, identity)
        if self.trust_domain not in (None, identity.trust_domain):
            raise AuthorityError(
                "ca_trust_domain",
                f"this CA signs for {self.trust_domain}, not for {identity.trust_domain}",
            )
        if not timedelta(0) < lifetime <= MAX_LEAF_LIFETIME:
            raise AuthorityError(
                "ca_lifetime", f"a lifetime of {lifetime} is not between 0 and {MAX_LEAF_LIFETIME}"
            )
        if now >= self.certificate.not_valid_after_utc:
            raise AuthorityError(
                "ca_expired",
                f"the CA expired on {self.certificate.not_valid_after_utc}",
                hint="run certs rotate",
            )
        key = request.public_key()
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _backdated(lifetime), self.certificate.not_valid_before_utc))
            # A leaf that outlives its CA would fail at peers while its own proxy still calls it valid.
            .not_valid_after(min(now + lifetime, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(names, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_key_identifier(self.certificate), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return (leaf, *self.chain)

    def revoke(self, serials: Iterable[int], *, now: datetime) -> CertificateAuthority:
        """Add serial numbers of certificates that this CA signed to its revocation list."""
        mine = [crl for crl in self.crls if crl.issuer == self.certificate.subject]
        entries = {entry.serial_number: entry for crl in mine for entry in crl}
        for serial in serials:
            if serial not in entries:
                entries[serial] = (
                    x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
                )
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + CRL_LIFETIME)
            .add_extension(x509.CRLNumber(_next_crl_number(mine)), critical=False)
            .add_extension(_key_identifier(self.certificate), critical=False)
        )
        for entry in entries.values():
            builder = builder.add_revoked_certificate(entry)
        others = tuple(crl for crl in self.crls if crl.issuer != self.certificate.subject)
        return replace(self, crls=(*others, builder.sign(self.key, hashes.SHA256())))

    def rotate(self, *, now: datetime) -> CertificateAuthority:
        """Make a new root of the same trust domain, which signs from now on; the old roots stay trusted.

        The new root is also signed by the old one and sent along, so a peer that has not yet heard of it
        verifies new leaves through the old root: no moment at which two proxies distrust each other.
        Raises :class:`AuthorityError` when this authority is an intermediate: its root has to be rotated.
        """
        if self.certificate not in self.roots:
            raise AuthorityError(
                "ca_rotate_intermediate",
                "this CA signs with an intermediate; only a root can be rotated",
                hint="rotate where the key of the root is kept",
            )
        fresh = create_authority(self.trust_domain or DEFAULT_TRUST_DOMAIN, now=now)
        bridge = _certify(
            fresh.certificate.subject,
            fresh.key,
            signer=self.certificate,
            signer_key=self.key,
            trust_domain=self.trust_domain,
            not_before=now - CLOCK_SKEW,
            not_after=self.certificate.not_valid_after_utc,
            path_length=None,
        )
        roots = (fresh.certificate, *self.roots)
        return CertificateAuthority(fresh.certificate, fresh.key, roots, (bridge, *self.chain), self.crls)

    def retire_old_roots(self) -> CertificateAuthority:
        """Trust only the root that the signing certificate leads to.

        Raises :class:`AuthorityError` when no root, or more than one, signed it directly.
        """
        kept = tuple(
            root for root in self.roots if root == self.certificate or is_signed_by(self.certificate, root)
        )
        if len(kept) != 1:
            raise AuthorityError(
                "ca_retire",
                "it is unknown which root the signing certificate needs",
                hint="edit root-cert.pem by hand",
            )
        names = {self.certificate.subject, kept[0].subject}
        chain = tuple(link for link in self.chain if link.subject != kept[0].subject and link.issuer in names)
        crls = tuple(crl for crl in self.crls if crl.issuer in names)
        return replace(self, roots=kept, chain=chain, crls=crls)

    def intermediate(self, *, now: datetime) -> CertificateAuthority:
        """Make a subordinate CA that signs leaves in place of this one, whose key can then be put away."""
        key = new_key()
        certificate = _certify(
            _name("intermediate", self.trust_domain),
            key,
            signer=self.certificate,
            signer_key=self.key,
            trust_domain=self.trust_domain,
            not_before=now - CLOCK_SKEW,
            not_after=min(now + INTERMEDIATE_LIFETIME, self.certificate.not_valid_after_utc),
            path_length=0,
        )
        return CertificateAuthority(certificate, key, self.roots, (certificate, *self.chain), self.crls)


def create_authority(trust_domain: str = DEFAULT_TRUST_DOMAIN, *, now: datetime) -> CertificateAuthority:
    """Make a new self-signed root. Raises ``SpiffeError`` for a trust domain outside the grammar."""
    SpiffeId(trust_domain, "any", "any")
    key = new_key()
    root = _certify(
        _name("root", trust_domain),
        key,
        signer=None,
        signer_key=key,
        trust_domain=trust_domain,
        not_before=now - CLOCK_SKEW,
        not_after=now + ROOT_LIFETIME,
        path_length=None,
    )
    return CertificateAuthority(root, key, (root,))


def _backdated(lifetime: timedelta) -> timedelta:
    """How far before its making a leaf begins: a short-lived one must not be past its half life at once."""
    return min(CLOCK_SKEW, lifetime / 4)


def _certify(
    subject: x509.Name,
    key: AuthorityKey,
    *,
    signer: x509.Certificate | None,
    signer_key: AuthorityKey,
    trust_domain: str | None,
    not_before: datetime,
    not_after: datetime,
    path_length: int | None,
) -> x509.Certificate:
    """Make a CA certificate; ``signer`` None makes it self-signed."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if signer is not None:
        builder = builder.add_extension(_key_identifier(signer), critical=False)
    if trust_domain is not None:
        # X509-SVID section 3: a signing certificate carries the trust domain's own SPIFFE ID, without a path.
        name = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
    return builder.sign(signer_key, hashes.SHA256())


def _name(role: str, trust_domain: str | None) -> x509.Name:
    """A name of its own for every CA certificate: revocation lists and path building go by the name."""
    suffix = f"{x509.random_serial_number():x}"[:12]
    # X.520 allows 64 characters in these attributes; trust domains may be longer.
    organisation = (trust_domain or "ztun")[:64]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"ztun {role} {suffix}"),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _key_identifier(signer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        subject_key = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key)


def _next_crl_number(crls: Iterable[x509.CertificateRevocationList]) -> int:
    numbers = [0]
    for crl in crls:
        try:
            numbers.append(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
        except (x509.ExtensionNotFound, *UNREADABLE):
            continue
    return max(numbers) + 1
