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
) -> Issuer:
    """Open what ``source`` names: a CA directory, a directory of certificate files, or an https URL.

    Raises :class:`IssuerError` when it names none of them.
    """
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
