"""Who may have which certificates from a CA server. Pure, apart from reading the file.

A caller is known by a bearer token or by a certificate of the mesh. A certificate may always be renewed by
its own holder; everything else needs a grant. The file, readable by its owner only::

    tokens:
      - token: 5f0c...                                  # at least 16 characters
        may: [spiffe://cluster.local/*]                 # every workload, as a node proxy needs
    certificates:
      - identity: spiffe://cluster.local/ns/ztun-system/sa/node
        may: [spiffe://cluster.local/ns/default/*]      # every workload of a namespace, or one identity
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certs.disk import read_file
from certs.errors import CertError
from certs.spiffe import MAX_URI_BYTES, SpiffeError, SpiffeId

MIN_TOKEN_CHARACTERS = 16  # 64 bits even if it is hexadecimal
MAX_ACCESS_BYTES = 1024 * 1024  # about 10,000 grants
SETTLED_NANOSECONDS = 2_000_000_000  # the coarsest clock of a file system, FAT's, ticks every 2 s
HEADER_TOKEN_BYTES = 16 * 1024  # a Kubernetes token is about 1 kB


@dataclass(frozen=True, slots=True)
class Grant:
    """Identities that may be had: one, those of a namespace, or those of a trust domain."""

    trust_domain: str
    namespace: str | None = None
    service_account: str | None = None

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Read ``spiffe://td/*``, ``spiffe://td/ns/name/*`` or a whole identity. Raises ``SpiffeError``."""
        if not text.endswith("/*"):
            identity = SpiffeId.parse(text)
            return cls(identity.trust_domain, identity.namespace, identity.service_account)
        stem = text.removesuffix("/*")
        if "/ns/" in stem:
            identity = SpiffeId.parse(f"{stem}/sa/any")
            return cls(identity.trust_domain, identity.namespace)
        return cls(SpiffeId.parse(f"{stem}/ns/any/sa/any").trust_domain)

    def covers(self, identity: SpiffeId) -> bool:
        """Whether ``identity`` is among them."""
        return (
            identity.trust_domain == self.trust_domain
            and self.namespace in (None, identity.namespace)
            and self.service_account in (None, identity.service_account)
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller and what it may have. ``name`` is for the log and holds no secret."""

    name: str
    grants: tuple[Grant, ...]

    def may_have(self, identity: SpiffeId) -> bool:
        """Whether a grant covers ``identity``."""
        return any(grant.covers(identity) for grant in self.grants)


@dataclass(frozen=True, slots=True)
class Access:
    """All grants. Tokens are kept as their digests, so that nothing here can be used to call."""

    tokens: Mapping[bytes, tuple[Grant, ...]] = field(default_factory=dict, repr=False)
    identities: Mapping[SpiffeId, tuple[Grant, ...]] = field(default_factory=dict)

    def caller_by_token(self, token: str) -> Caller | None:
        """Find the caller of a bearer token; None for an unknown one."""
        digest = _digest(token)
        # The look-up goes by digest, whose timing tells nothing about the token.
        grants = self.tokens.get(digest)
        return Caller(f"token {digest.hex()[:8]}", grants) if grants is not None else None

    def caller_by_identity(self, identity: SpiffeId) -> Caller:
        """Find what the holder of a certificate may have: at least the same identity again."""
        own = Grant(identity.trust_domain, identity.namespace, identity.service_account)
        return Caller(str(identity), (own, *self.identities.get(identity, ())))


_Uri = Annotated[str, Field(max_length=MAX_URI_BYTES)]
_Uris = Annotated[list[_Uri], Field(min_length=1, max_length=1000)]


class _TokenDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    token: Annotated[str, Field(min_length=MIN_TOKEN_CHARACTERS, max_length=HEADER_TOKEN_BYTES)]
    may: _Uris


class _CertificateDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")
    identity: _Uri
    may: _Uris


class _AccessDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    tokens: Annotated[list[_TokenDocument], Field(max_length=10_000)] = []
    certificates: Annotated[list[_CertificateDocument], Field(max_length=10_000)] = []


class AccessFile:
    """An access file that is asked for with every request and read when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], Access] | None = None

    def read(self) -> Access:
        """What it says now. Raises what :func:`read_access` raises, also when others can read it by now."""
        try:
            status = self._path.stat()  # before it is read: a change in between shows the next time
        except OSError:
            self._known = None
            return read_access(self._path)  # says why
        signature = (
            status.st_dev,
            status.st_ino,
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        if self._known is not None and self._known[0] == signature:
            return self._known[1]
        self._known = None
        access = read_access(self._path)
        # One more change in the same tick of the file system's clock would leave the signature as it is.
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NANOSECONDS:
            self._known = signature, access
        return access


def read_access(path: Path) -> Access:
    """Read an access file. Raises :class:`CertError` that names the place, never a token."""
    data = read_file(path)
    if path.stat().st_mode & 0o077:
        raise CertError(
            "access_readable", f"{path} can be read by other users", hint=f"it holds tokens: chmod 600 {path}"
        )
    if len(data) > MAX_ACCESS_BYTES:
        raise CertError("access_too_large", f"{path}: longer than {MAX_ACCESS_BYTES} bytes")
    try:
        document = _AccessDocument.model_validate(yaml.load(data, Loader=yaml.CSafeLoader) or {})
        tokens = {_digest(entry.token): _grants(entry.may) for entry in document.tokens}
        identities = {SpiffeId.parse(entry.identity): _grants(entry.may) for entry in document.certificates}
    except yaml.YAMLError as error:
        raise CertError("access_unreadable", f"{path}{_place(data, error)}: not YAML") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise CertError("access_invalid", f"{path}: {where}: {first['msg'].lower()}") from None
    except SpiffeError as error:
        raise CertError("access_invalid", f"{path}: {error}") from None
    return Access(tokens, identities)


def _place(data: bytes, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ""
    lines = data.rstrip().split(b"\n")
    if mark.line >= len(lines):  # what is missing at the end is best looked for where the text ends
        return f":{len(lines)}:{len(lines[-1]) + 1}"
    return f":{mark.line + 1}:{mark.column + 1}"


def _grants(texts: list[str]) -> tuple[Grant, ...]:
    return tuple(Grant.parse(text) for text in texts)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
