"""Which documents this package reads, and with which model."""

from __future__ import annotations

from ztun.mesh.document import Document

ISTIO_GROUP = "networking.istio.io"
GATEWAY_API_GROUP = "gateway.networking.k8s.io"
ISTIO_VERSIONS = ("v1", "v1beta1", "v1alpha3")
GATEWAY_API_VERSIONS = ("v1", "v1beta1", "v1alpha2", "v1alpha3")

VIRTUAL_SERVICE = (ISTIO_GROUP, "VirtualService")
DESTINATION_RULE = (ISTIO_GROUP, "DestinationRule")
ISTIO_GATEWAY = (ISTIO_GROUP, "Gateway")
API_GATEWAY = (GATEWAY_API_GROUP, "Gateway")
TCP_ROUTE = (GATEWAY_API_GROUP, "TCPRoute")
TLS_ROUTE = (GATEWAY_API_GROUP, "TLSRoute")
REFERENCE_GRANT = (GATEWAY_API_GROUP, "ReferenceGrant")

ROUTING_KINDS = frozenset(
    {VIRTUAL_SERVICE, DESTINATION_RULE, ISTIO_GATEWAY, API_GATEWAY, TCP_ROUTE, TLS_ROUTE, REFERENCE_GRANT}
)


def kind_of(document: Document) -> tuple[str, str]:
    """(API group, kind): two APIs have a Gateway."""
    return (document.group, document.kind)
