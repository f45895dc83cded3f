"""Certificates as PEM files, the form that Envoy and nginx take them in, from a throw-away authority."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.authority import create_authority
from certs.request import build_request, new_key
from certs.spiffe import SpiffeId


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


class TestAuthority:
    """A certificate authority of a test; ``directory`` also serves as ``--ca`` of a proxy."""

    __test__ = False  # the name begins with Test, pytest must not collect it

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "ca"
        self._issued = directory / "issued"
        self._authority = create_authority(now=datetime.now(UTC))
        self._credentials: dict[SpiffeId, Credentials] = {}

    def issue(self, identity: SpiffeId) -> Credentials:
        """Files for this identity, made on the first call."""
        if identity not in self._credentials:
            key = new_key()
            chain = self._authority.sign(build_request(key, identity), identity, now=datetime.now(UTC))
            made = Credentials(identity, self._issued / identity.path.replace("/", "."))
            made.directory.mkdir(parents=True)
            made.chain.write_bytes(b"".join(link.public_bytes(Encoding.PEM) for link in chain))
            made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            made.key.chmod(0o600)
            made.roots.write_bytes(
                b"".join(root.public_bytes(Encoding.PEM) for root in self._authority.roots)
            )
            self._credentials[identity] = made
        return self._credentials[identity]
