"""What is true of a whole mesh and stands in no document."""

from __future__ import annotations

from dataclasses import dataclass

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """``network`` is that of the cluster's pods and services unless their labels say otherwise.

    Policies in ``root_namespace`` hold for the whole mesh. Raises ``SpiffeError`` for a trust domain that no
    identity can have.
    """

    cluster_domain: str = "cluster.local"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    cluster_id: str = "Kubernetes"
    root_namespace: str = "istio-system"
    network: str = ""

    def __post_init__(self) -> None:
        SpiffeId(self.trust_domain, self.root_namespace, "default")

    def service_hostname(self, namespace: str, name: str) -> str:
        """The full DNS name of a Kubernetes Service."""
        return f"{name}.{namespace}.svc.{self.cluster_domain}"
