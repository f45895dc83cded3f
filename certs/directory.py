"""A certificate authority kept in a directory.

``ca-cert.pem`` and ``ca-key.pem`` sign; ``cert-chain.pem`` goes with every leaf; ``root-cert.pem`` is what
everybody trusts, the newest first; ``crl.pem`` revokes. With an intermediate, ``root-key.pem`` is the key
of the root, which may be moved elsewhere until a rotation. ``previous/`` holds the CAs that signed before,
which can still revoke. The names are those of Istio's ``cacerts`` secret, so a directory of such files
works too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from certs.authority import CertificateAuthority, create_authority
from certs.bundle import certificates_pem, crls_pem, parse_certificates, parse_crls
from certs.disk import locked, make_directory, read_file, read_key, write_file, write_key
from certs.errors import AuthorityError, CertError

CERTIFICATE = "ca-cert.pem"
KEY = "ca-key.pem"
CHAIN = "cert-chain.pem"
ROOTS = "root-cert.pem"
CRL = "crl.pem"
ROOT_KEY = "root-key.pem"
PREVIOUS = "previous"


@dataclass(frozen=True, slots=True)
class CaDirectory:
    """One CA directory. Every method raises :class:`CertError`; changes are made under a lock."""

    path: Path

    def exists(self) -> bool:
        """Whether a CA is here."""
        return (self.path / KEY).exists() or (self.path / CERTIFICATE).exists()

    def create(self, trust_domain: str, *, now: datetime, intermediate: bool = False) -> CertificateAuthority:
        """Make a new CA. An existing one is never overwritten."""
        make_directory(self.path)
        with locked(self.path):
            if self.exists():
                raise AuthorityError(
                    "ca_exists",
                    f"{self.path} already holds a CA",
                    hint="use it, choose another directory, or run certs rotate",
                )
            authority = create_authority(trust_domain, now=now)
            if intermediate:
                write_key(self.path / ROOT_KEY, authority.key)
                authority = authority.intermediate(now=now)
            self._save(authority)
            return authority

    def load(self) -> CertificateAuthority:
        """Read the CA that signs now."""
        if not self.exists():
            hint = f"run certs init {self.path}"
            raise AuthorityError("ca_missing", f"{self.path} holds no CA", hint=hint)
        roots = self._certificates(ROOTS)
        certificate = self._certificates(CERTIFICATE)[0]
        stored = self._certificates(CHAIN) if (self.path / CHAIN).exists() else ()
        # Istio's chain file repeats the root, which peers must have anyway.
        chain = tuple(link for link in stored if link.subject != link.issuer)
        if certificate not in roots and certificate not in chain:
            chain = (certificate, *chain)
        crls = self._crls()
        return CertificateAuthority(certificate, read_key(self.path / KEY), roots, chain, crls)

    def rotate(self, *, now: datetime) -> CertificateAuthority:
        """Make a new root that signs from now on; the old one stays trusted until :meth:`retire`."""
        with locked(self.path):
            old = self.load()
            root = self._root_of(old)
            fresh = root.rotate(now=now)
            self._keep(old)
            if root is not old:
                self._keep(root)
                write_key(self.path / ROOT_KEY, fresh.key)
                fresh = fresh.intermediate(now=now)
            self._save(fresh)
            return fresh

    def retire(self) -> CertificateAuthority:
        """Trust the current root only; certificates of the earlier ones are refused from now on."""
        with locked(self.path):
            authority = self.load().retire_old_roots()
            self._save(authority)
            shutil.rmtree(self.path / PREVIOUS, ignore_errors=True)
            return authority

    def revoke(self, serial: int, issuer: x509.Name | None, *, now: datetime) -> CertificateAuthority:
        """Revoke a certificate by its serial number.

        ``issuer`` None is for a bare number, which does not tell the CA that signed: it goes into the list of each CA
        here that may have. Numbers are random, so it names no other certificate there.
        """
        with locked(self.path):
            authority = self.load()
            if issuer is not None:
                signers = [self._named(issuer, authority)]
            else:
                signers = self._possible_issuers(serial, authority)
            for signer in signers:
                listing = replace(signer, crls=authority.crls).revoke([serial], now=now)
                authority = replace(authority, crls=listing.crls)
            write_file(self.path / CRL, crls_pem(authority.crls), private=False)
            return authority

    def _root_of(self, authority: CertificateAuthority) -> CertificateAuthority:
        if authority.certificate in authority.roots:
            return authority
        if not (self.path / ROOT_KEY).exists():
            raise AuthorityError(
                "ca_root_key_missing",
                f"{self.path} signs with an intermediate and has no {ROOT_KEY}",
                hint=f"put the key of the root there as {ROOT_KEY} for the rotation",
            )
        key = read_key(self.path / ROOT_KEY)
        for root in authority.roots:
            if root.public_key() == key.public_key():
                links = tuple(link for link in authority.chain if link.subject == root.subject)
                return CertificateAuthority(root, key, authority.roots, links, authority.crls)
        raise AuthorityError("ca_key_mismatch", f"{ROOT_KEY} belongs to none of the certificates in {ROOTS}")

    def _possible_issuers(self, serial: int, current: CertificateAuthority) -> list[CertificateAuthority]:
        """The CAs that may have signed a certificate of that number; one, where it is known here."""
        signers = list(self._signers(current))
        for known in (*current.chain, *(signer.certificate for signer in signers)):
            if known.serial_number == serial and known.subject != known.issuer:
                return [self._named(known.issuer, current)]
        return signers

    def _named(self, issuer: x509.Name, current: CertificateAuthority) -> CertificateAuthority:
        for signer in self._signers(current):
            if signer.certificate.subject == issuer:
                return signer
        raise AuthorityError(
            "ca_not_issuer",
            f"the certificate was signed by {issuer.rfc4514_string()}, which is not a CA of {self.path}",
            hint=f"revoke it at the CA that signed it; a root that signed an intermediate needs its {ROOT_KEY} here",
        )

    def _signers(self, current: CertificateAuthority) -> Iterator[CertificateAuthority]:
        """The CAs whose keys are here: the one that signs, those that signed before, the root above an intermediate."""
        yield current
        for directory in sorted((self.path / PREVIOUS).glob("*/")):
            if not (directory / KEY).exists():
                continue  # taken away on purpose: it is to sign nothing more
            certificate = parse_certificates(read_file(directory / CERTIFICATE), name=str(directory))[0]
            key = read_key(directory / KEY)
            yield CertificateAuthority(certificate, key, current.roots, (), current.crls)
        if (self.path / ROOT_KEY).exists():
            yield self._root_of(current)

    def _keep(self, authority: CertificateAuthority) -> None:
        directory = self.path / PREVIOUS / f"{authority.certificate.serial_number:x}"
        make_directory(self.path / PREVIOUS)
        make_directory(directory)
        write_file(directory / CERTIFICATE, certificates_pem([authority.certificate]), private=False)
        write_key(directory / KEY, authority.key)

    def _save(self, authority: CertificateAuthority) -> None:
        # Roots first: whoever reads in between trusts the new root before anything is signed by it.
        write_file(self.path / ROOTS, certificates_pem(authority.roots), private=False)
        write_file(self.path / CRL, crls_pem(authority.crls), private=False)
        write_key(self.path / KEY, authority.key)
        write_file(self.path / CERTIFICATE, certificates_pem([authority.certificate]), private=False)
        if authority.chain:
            write_file(self.path / CHAIN, certificates_pem(authority.chain), private=False)
        else:
            (self.path / CHAIN).unlink(missing_ok=True)

    def _certificates(self, name: str) -> tuple[x509.Certificate, ...]:
        path = self.path / name
        return parse_certificates(read_file(path), name=str(path))

    def _crls(self) -> tuple[x509.CertificateRevocationList, ...]:
        path = self.path / CRL
        try:
            return parse_crls(read_file(path), name=str(path)) if path.exists() else ()
        except CertError as error:
            raise AuthorityError(error.code, str(error), hint=error.hint) from None
