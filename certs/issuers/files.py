"""Certificate files that somebody else renews: ``cert-chain.pem``, ``key.pem``, ``root-cert.pem``.

One directory serves one identity; a directory of such directories serves several. The files are read again
when they change, also by the symlink swap of a Kubernetes volume.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from certs.bundle import is_signed_by, parse_certificates, parse_crls
from certs.disk import read_file, read_key
from certs.errors import CertError, IssuerError
from certs.issuers.base import Change, Issued, Trust
from certs.issuers.watching import watch_directory
from certs.peer import TlsRejection, read_facts
from certs.spiffe import SpiffeId

CHAIN = "cert-chain.pem"
KEY = "key.pem"
ROOTS = "root-cert.pem"
CRL = "crl.pem"
MAX_DIRECTORIES = 1024  # identities of one node, with room to spare


def holds_certificate(path: Path) -> bool:
    """Whether a directory has the three files of one certificate."""
    return all((path / name).is_file() for name in (CHAIN, KEY, ROOTS))


class FileIssuer:
    """Gives the certificates that lie in files. ``path`` holds one, or directories with one each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def obtain(self, identity: SpiffeId) -> Issued:
        """Read the certificate of ``identity``."""
        found: list[str] = []
        for directory in self._directories():
            chain = parse_certificates(read_file(directory / CHAIN), name=str(directory / CHAIN))
            names = _identities(chain[0])
            if names == (str(identity),):
                own = tuple(link for link in chain if link.subject != link.issuer or link == chain[0])
                self._check_roots(directory, own)
                return Issued(own, read_key(directory / KEY))
            found.extend(names)
        raise IssuerError(
            "files_no_such_identity",
            f"{self._path} has no certificate for {identity}",
            hint=f"it has {', '.join(found[:5]) or 'none'}",
        )

    async def trust(self) -> Trust:
        """Read the roots and revocation lists of all directories."""
        roots: dict[x509.Certificate, None] = {}
        crls: list[x509.CertificateRevocationList] = []
        for directory in self._directories():
            roots.update(
                dict.fromkeys(parse_certificates(read_file(directory / ROOTS), name=str(directory / ROOTS)))
            )
            path = directory / CRL
            if path.exists():
                crls.extend(crl for crl in parse_crls(read_file(path), name=str(path)) if crl not in crls)
        return Trust(tuple(roots), tuple(crls))

    async def watch(self, changed: Callable[[Change], None]) -> None:
        """Tell of changed files."""

        def both() -> None:
            changed(Change.TRUST)
            changed(Change.CERTIFICATES)

        await watch_directory(self._path, both)

    async def close(self) -> None:
        """Nothing is held open."""

    def _check_roots(self, directory: Path, chain: tuple[x509.Certificate, ...]) -> None:
        """Say here that the files do not belong together; peers would only say that they do not know our CA."""
        roots = parse_certificates(read_file(directory / ROOTS), name=str(directory / ROOTS))
        if not any(is_signed_by(link, root) for link in chain for root in roots):
            raise IssuerError(
                "files_wrong_root",
                f"no certificate in {directory / ROOTS} signed {directory / CHAIN}",
                hint="the files may come from different CAs, or an intermediate is missing from the chain",
            )

    def _directories(self) -> list[Path]:
        if holds_certificate(self._path):
            return [self._path]
        try:
            directories = sorted(path for path in self._path.iterdir() if holds_certificate(path))
        except OSError as error:
            raise CertError(
                "file_not_read", f"{self._path}: {(error.strerror or str(error)).lower()}"
            ) from None
        if not directories:
            raise IssuerError(
                "files_missing",
                f"{self._path} has no certificate files",
                hint=f"expected {CHAIN}, {KEY} and {ROOTS}",
            )
        return directories[:MAX_DIRECTORIES]


def _identities(leaf: x509.Certificate) -> tuple[str, ...]:
    facts = read_facts(leaf)
    return () if isinstance(facts, TlsRejection) else facts.uri_names
