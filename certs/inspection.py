"""What is in certificate files, as rows for a reader: kind, identity, dates, state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from certs.bundle import parse_certificates, parse_crls
from certs.disk import read_file
from certs.errors import CertError
from certs.peer import TlsRejection, read_facts

MAX_FILES = 1000  # of one directory


@dataclass(frozen=True, slots=True)
class InspectedCertificate:
    """One certificate of a file; ``expires_in_seconds`` is negative when it has expired."""

    file: str
    kind: str
    identity: str
    serial: str
    not_before: str
    not_after: str
    expires_in_seconds: int
    state: str
    issuer: str

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON and YAML."""
        return asdict(self)


def inspect_paths(paths: Iterable[Path], *, now: datetime) -> list[InspectedCertificate]:
    """Read certificates from files and directories, in the order of their names.

    Revocation lists among the files apply to the certificates beside them. Raises :class:`CertError` when a
    path cannot be read or nothing is found.
    """
    certificates: list[tuple[str, x509.Certificate]] = []
    crls: list[x509.CertificateRevocationList] = []
    for path in paths:
        for file in _files(path):
            data = read_file(file)
            if b"-----BEGIN X509 CRL-----" in data:
                crls.extend(parse_crls(data, name=str(file)))
            if b"-----BEGIN CERTIFICATE-----" in data:
                found = parse_certificates(data, name=str(file))
                certificates.extend((str(file), certificate) for certificate in found)
    if not certificates:
        named = ", ".join(str(path) for path in paths)
        raise CertError(
            "nothing_to_inspect", f"no certificate in {named}", hint="PEM files or directories of them"
        )
    return [_describe(file, certificate, crls, now) for file, certificate in certificates]


def _files(path: Path) -> Sequence[Path]:
    if path.is_dir():
        return sorted(child for child in path.glob("*.pem") if child.is_file())[:MAX_FILES]
    return [path]


def _describe(
    file: str, certificate: x509.Certificate, crls: Iterable[x509.CertificateRevocationList], now: datetime
) -> InspectedCertificate:
    facts = read_facts(certificate)
    left = int((certificate.not_valid_after_utc - now).total_seconds())
    if any(_revokes(crl, certificate) for crl in crls):
        state = "revoked"
    elif left <= 0:
        state = "expired"
    else:
        state = "not yet valid" if now < certificate.not_valid_before_utc else "valid"
    if isinstance(facts, TlsRejection):
        kind, identity, state = "unreadable", "", facts.message
    else:
        own = certificate.subject == certificate.issuer
        kind = "workload" if not facts.is_authority else "root" if own else "intermediate"
        identity = ", ".join(facts.uri_names) or certificate.subject.rfc4514_string()
    return InspectedCertificate(
        file,
        kind,
        identity,
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc.isoformat(),
        certificate.not_valid_after_utc.isoformat(),
        left,
        state,
        certificate.issuer.rfc4514_string(),
    )


def _revokes(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    return (
        crl.issuer == certificate.issuer
        and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    )
