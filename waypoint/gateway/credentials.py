"""What a server terminates TLS with: certificate, key and client CAs, from Secrets or files.

``credentialName`` is a Secret in the gateway's own namespace, of type ``kubernetes.io/tls`` or with the keys ``cert``,
``key`` and ``cacert``; the CA of the clients may be in a Secret of the same name with ``-cacert`` behind it (Istio).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from waypoint.resources.secret import SecretResource
from waypoint.routes.listeners import BoundServer
from waypoint.routes.model import ServerTls
from ztun.errors import ConfigError
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import validate

CLIENT_CA_SUFFIX = "-cacert"
MUTUAL_MODES = ("MUTUAL", "OPTIONAL_MUTUAL")
MAX_FILE_BYTES = 1024 * 1024  # as much as a Secret may hold

_CHAIN_KEYS = ("tls.crt", "cert")
_KEY_KEYS = ("tls.key", "key")
_AUTHORITY_KEYS = ("ca.crt", "cacert")
_REVOCATION_KEYS = ("ca.crl", "crl")


@dataclass(frozen=True, slots=True)
class Material:
    """PEM text. ``authorities`` verify clients, ``revocations`` are their lists; both empty without client TLS."""

    chain: bytes
    key: bytes = field(repr=False)
    authorities: bytes = b""
    revocations: bytes = b""


class Credentials:
    """Finds the material of servers in one snapshot. ``files`` are those that were looked at, for following them."""

    def __init__(self, snapshot: Snapshot, namespace: str) -> None:
        self._namespace = namespace
        self._secrets = {
            document.name: document
            for document in snapshot.documents
            if (document.group, document.kind, document.namespace) == ("", "Secret", namespace)
        }
        self.files: set[Path] = set()

    def find(self, bound: BoundServer) -> Material:
        """The material of one server. Raises :class:`ConfigError` that says what is missing."""
        tls = bound.server.tls
        if tls is None:
            raise ConfigError(
                "no_tls", "the server has no tls settings", hint="give the server a tls block with a mode"
            )
        mutual = tls.mode in MUTUAL_MODES
        found = self._from_secrets(tls, mutual) if tls.credential_name else self._from_files(tls, mutual)
        if mutual and not found.authorities:
            raise ConfigError(
                "no_client_ca",
                f"mode {tls.mode} needs the CA certificates of the clients",
                hint="ca.crt in the Secret, a Secret with -cacert behind its name, or caCertificates",
            )
        return found

    def _from_secrets(self, tls: ServerTls, mutual: bool) -> Material:
        name = tls.credential_name
        values = self._values(name)
        if values is None:
            raise ConfigError(
                "no_secret",
                f"there is no Secret {self._namespace}/{name}",
                hint="a credential is looked for in the namespace of the gateway",
            )
        chain, key = _first(values, _CHAIN_KEYS), _first(values, _KEY_KEYS)
        if not chain or not key:
            missing = _CHAIN_KEYS if not chain else _KEY_KEYS
            raise ConfigError(
                "secret_incomplete",
                f"Secret {self._namespace}/{name} has no {' or '.join(missing)}",
                hint="make it with 'kubectl create secret tls', or add the key",
            )
        if not mutual:
            return Material(chain, key)
        separate = self._values(f"{name}{CLIENT_CA_SUFFIX}")
        trust = values if separate is None else separate
        return Material(chain, key, _first(trust, _AUTHORITY_KEYS), _first(trust, _REVOCATION_KEYS))

    def _values(self, name: str) -> Mapping[str, bytes] | None:
        document = self._secrets.get(name)
        if document is None:
            return None
        secret, problems = validate(SecretResource, document)
        if secret is None:
            raise ConfigError(
                "secret_invalid",
                str(problems[0]),
                hint=problems[0].hint or "correct the Secret at the place named",
            )
        return secret.values()

    def _from_files(self, tls: ServerTls, mutual: bool) -> Material:
        if not (tls.server_certificate and tls.private_key):
            raise ConfigError(
                "no_credential",
                f"mode {tls.mode} needs a certificate and its key",
                hint="name a Secret with credentialName, or files with serverCertificate and privateKey",
            )
        authorities = self._read(tls.ca_certificates) if mutual and tls.ca_certificates else b""
        return Material(self._read(tls.server_certificate), self._read(tls.private_key), authorities)

    def _read(self, name: str) -> bytes:
        path = Path(name)
        self.files.add(path)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                "file_unreadable",
                f"{name} cannot be read: {error.strerror}",
                hint="check the path, and that the gateway may read it",
            ) from error
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(
                "file_too_large",
                f"{name} is larger than {MAX_FILE_BYTES // 1024} KiB",
                hint="is it a PEM file?",
            )
        return content


def _first(values: Mapping[str, bytes], keys: tuple[str, ...]) -> bytes:
    return next((values[key] for key in keys if values.get(key)), b"")
