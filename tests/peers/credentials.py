"""Certificates as PEM files, the form that Envoy and nginx take them in, from a throw-away authority."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certs.bundle import certificates_pem
from certs.directory import CaDirectory
from certs.disk import write_file, write_key
from certs.request import build_request, new_key
from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId


@dataclass(frozen=True, slots=True)
class Credentials:
    """The three files of one identity, named as ``certs issue`` names them."""

    identity: SpiffeId
    directory: Path

    @property
    def chain(self) -> Path:
        """The leaf and its intermediates."""
        return self.directory / "cert-chain.pem"

    @property
    def key(self) -> Path:
        """The private key."""
        return self.directory / "key.pem"

    @property
    def roots(self) -> Path:
        """The trust roots."""
        return self.directory / "root-cert.pem"


class ThrowAwayAuthority:
    """A certificate authority for one test run; ``directory`` serves as ``--ca`` of a proxy."""

    def __init__(self, parent: Path) -> None:
        self.directory = parent / "ca"
        self._issued = parent / "issued"
        self._authority = CaDirectory(self.directory).create(DEFAULT_TRUST_DOMAIN, now=datetime.now(UTC))
        self._credentials: dict[SpiffeId, Credentials] = {}

    def issue(self, identity: SpiffeId) -> Credentials:
        """Files for this identity, made on the first call."""
        if identity not in self._credentials:
            key = new_key()
            chain = self._authority.sign(build_request(key, identity), identity, now=datetime.now(UTC))
            made = Credentials(identity, self._issued / identity.path.replace("/", "."))
            made.directory.mkdir(parents=True)
            write_file(made.chain, certificates_pem(chain), private=False)
            write_key(made.key, key)
            write_file(made.roots, certificates_pem(self._authority.roots), private=False)
            self._credentials[identity] = made
        return self._credentials[identity]
