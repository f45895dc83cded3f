"""The embedded CA: a CA directory on this machine signs in this process."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from certs.authority import LEAF_LIFETIME
from certs.directory import CaDirectory
from certs.errors import CertError
from certs.issuers.base import Change, Issued, Trust
from certs.issuers.watching import watch_directory
from certs.request import build_request, new_key
from certs.spiffe import SpiffeId


class EmbeddedIssuer:
    """Signs with the CA directory; it is read for each request, so a rotation needs no restart."""

    def __init__(
        self, path: Path, *, now: Callable[[], datetime], lifetime: timedelta = LEAF_LIFETIME
    ) -> None:
        self._directory = CaDirectory(path)
        self._now = now
        self._lifetime = lifetime

    async def obtain(self, identity: SpiffeId) -> Issued:
        """Make a key, ask the CA, give both."""
        authority = self._directory.load()
        key = new_key()
        chain = authority.sign(
            build_request(key, identity), identity, now=self._now(), lifetime=self._lifetime
        )
        return Issued(chain, key)

    async def trust(self) -> Trust:
        """Read roots and revocation lists."""
        authority = self._directory.load()
        return Trust(authority.roots, authority.crls)

    async def watch(self, changed: Callable[[Change], None]) -> None:
        """Tell of changes in the directory: a revocation, or a rotation, which makes every leaf an old one.

        Leaves of the old root are replaced at once and not at their half life, so that it can be retired soon.
        """
        signer = self._signer()

        def look() -> None:
            nonlocal signer
            changed(Change.TRUST)
            now = self._signer()
            if now is not None and now != signer:
                signer = now
                changed(Change.CERTIFICATES)

        await watch_directory(self._directory.path, look)

    def _signer(self) -> x509.Certificate | None:
        try:
            return self._directory.load().certificate
        except CertError:
            return None  # in the middle of a change; the store asks again and reports it

    async def close(self) -> None:
        """Nothing is held open."""
