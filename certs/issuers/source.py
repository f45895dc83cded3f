"""From ``--ca SOURCE`` to an issuer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from certs.authority import LEAF_LIFETIME
from certs.directory import CaDirectory
from certs.errors import IssuerError
from certs.issuers.base import Issuer
from certs.issuers.embedded import EmbeddedIssuer
from certs.issuers.files import FileIssuer, holds_certificate


def open_issuer(
    source: str,
    *,
    now: Callable[[], datetime],
    lifetime: timedelta = LEAF_LIFETIME,
    roots: Path | None = None,
    token: Path | None = None,
    certificate: Path | None = None,
) -> Issuer:
    """Open what ``source`` names: a CA directory, a directory of certificate files, or an https URL.

    For a URL ``roots`` (a PEM file that says whom to believe) is needed, and ``token`` (a file) or
    ``certificate`` (a directory) to show. Raises :class:`IssuerError` when ``source`` names none of them.
    """
    if "://" in source:
        return _remote(source, lifetime, roots, token, certificate)
    path = Path(source)
    if not path.is_dir():
        raise IssuerError(
            "ca_source",
            f"{source} is no directory and no https URL",
            hint=f"for a new CA run certs init {source}",
        )
    if CaDirectory(path).exists():
        return EmbeddedIssuer(path, now=now, lifetime=lifetime)
    if holds_certificate(path) or any(holds_certificate(child) for child in path.iterdir()):
        return FileIssuer(path)
    raise IssuerError(
        "ca_source",
        f"{source} holds neither a CA nor certificate files",
        hint=f"for a new CA run certs init {source}",
    )


def _remote(
    url: str, lifetime: timedelta, roots: Path | None, token: Path | None, certificate: Path | None
) -> Issuer:
    # The HTTP client takes longer to import than all of this; only who needs it pays.
    from certs.issuers.remote import RemoteIssuer, RemoteSettings

    if not url.startswith("https://"):
        raise IssuerError("ca_source", f"{url} is no https URL")
    if roots is None:
        raise IssuerError(
            "ca_no_roots",
            f"nothing says how to recognise the CA at {url}",
            hint="name a PEM file with its root certificate in CA_ROOT_CA",
        )
    return RemoteIssuer(RemoteSettings(url, roots, token, certificate), lifetime=lifetime)
