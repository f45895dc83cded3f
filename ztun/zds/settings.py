"""What in-pod mode is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certs.spiffe import DEFAULT_TRUST_DOMAIN

INPOD_MARK = 1337  # 0x539, by which the redirect rules know the proxy's own packets


@dataclass(frozen=True, slots=True)
class ProxyPod:
    """The pod that this proxy itself is; it is served in the proxy's own namespace."""

    name: str
    namespace: str
    service_account: str
    trust_domain: str = DEFAULT_TRUST_DOMAIN


@dataclass(frozen=True, slots=True)
class InpodSettings:
    """In-pod mode: the pods come from a node agent, and are served inside their network namespaces."""

    uds: Path = Path("/var/run/ztunnel/ztunnel.sock")
    port_reuse: bool = True
    """Whether an old and a new proxy may listen side by side."""
    itself: ProxyPod | None = None
