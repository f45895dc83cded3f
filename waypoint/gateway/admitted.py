"""Which of the clients whose certificate is valid a server admits: by name, key or certificate (pure)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@dataclass(frozen=True, slots=True)
class AdmittedClients:
    """Empty sets restrict nothing. Names are required apart from keys and hashes, of which one is enough (Istio)."""

    names: frozenset[str]
    keys: frozenset[str]
    hashes: frozenset[str]

    @property
    def restricted(self) -> bool:
        """Whether anybody with a valid certificate could be refused."""
        return bool(self.names or self.keys or self.hashes)

    def admits(self, certificate: x509.Certificate) -> bool:
        """Whether a client with this certificate is one of them."""
        if self.names and self.names.isdisjoint(subject_names(certificate)):
            return False
        if not (self.keys or self.hashes):
            return True
        return _key_hash(certificate) in self.keys or _hash(certificate) in self.hashes


def admitted_clients(names: Iterable[str], keys: Iterable[str], hashes: Iterable[str]) -> AdmittedClients:
    """From ``subjectAltNames``, ``verifyCertificateSpki`` (base64) and ``verifyCertificateHash`` (hexadecimal)."""
    return AdmittedClients(
        frozenset(name if ":" in name else name.lower() for name in names),
        frozenset(keys),
        frozenset(text.replace(":", "").lower() for text in hashes),
    )


def subject_names(certificate: x509.Certificate) -> frozenset[str]:
    """The DNS names (lower case), URIs, mail and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    dns = (name.lower() for name in names.get_values_for_type(x509.DNSName))
    addresses = (str(ip) for ip in names.get_values_for_type(x509.IPAddress))
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    mail = (name.lower() for name in names.get_values_for_type(x509.RFC822Name))
    return frozenset((*dns, *addresses, *uris, *mail))


def _key_hash(certificate: x509.Certificate) -> str:
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def _hash(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
