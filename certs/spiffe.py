"""SPIFFE identities of the form ``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``.

The grammar is an allow-list, so a NUL, a control character, an escape or an extra path segment can never
make two different names compare equal (CVE-2025-66220 is the class of error this prevents). Source:
SPIFFE-ID section 2; Istio's four-part path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_URI_BYTES = 2048  # SPIFFE-ID section 2.3: implementations support URIs of up to 2048 bytes
MAX_TRUST_DOMAIN_BYTES = 255  # SPIFFE-ID section 2.1
DEFAULT_TRUST_DOMAIN = "cluster.local"

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


class SpiffeError(ValueError):
    """The text is not a SPIFFE identity of a workload; the message names the part and what it may contain."""


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """One workload identity. Equality is exact and case-sensitive; ``str()`` gives the URI.

    Raises :class:`SpiffeError` when a part is empty, too long or has a character outside the grammar.
    """

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        if len(self.trust_domain) > MAX_TRUST_DOMAIN_BYTES or not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise SpiffeError(
                f"trust domain {self.trust_domain!r}: use lower-case letters, digits, '.', '-' and '_', "
                f"1 to {MAX_TRUST_DOMAIN_BYTES} of them"
            )
        for name, segment in (("namespace", self.namespace), ("service account", self.service_account)):
            if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
                raise SpiffeError(f"{name} {segment!r}: use letters, digits, '.', '-' and '_'")
        if len(str(self)) > MAX_URI_BYTES:
            raise SpiffeError(f"the identity is longer than {MAX_URI_BYTES} bytes")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, uri: str) -> SpiffeId:
        """Read a URI such as ``spiffe://cluster.local/ns/default/sa/client``.

        Raises :class:`SpiffeError` for anything that does not have exactly this shape: another scheme or
        case of it, a port, user, query or fragment, an empty, missing or extra path segment, or a character
        outside the grammar (control characters and NUL among them).
        """
        if len(uri) > MAX_URI_BYTES:
            raise SpiffeError(f"the identity is longer than {MAX_URI_BYTES} bytes")
        scheme, separator, rest = uri.partition("://")
        parts = rest.split("/")
        if scheme != "spiffe" or not separator or len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise SpiffeError(
                f"{uri!r}: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
            )
        return cls(parts[0], parts[2], parts[4])

    @property
    def path(self) -> str:
        """The identity without its scheme, the form that AuthorizationPolicy principals are written in."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"
