"""Where certificates come from.

Reading order: ``base`` (what the store needs), ``embedded`` (a CA directory on this machine), ``files``
(certificates that somebody else renews), ``remote`` (a CA server), ``source`` (from ``--ca SOURCE`` to one
of them).
"""

from certs.issuers.base import Change, Issued, Issuer, Trust
from certs.issuers.source import open_issuer

__all__ = ["Change", "Issued", "Issuer", "Trust", "open_issuer"]
