"""What a match block means, per dialect. Pure predicates; where the reason is worth telling, they say it.

Within a block conditions are ANDed. ``destinationSubnets`` and ``sniHosts`` are looked at per connection and are not
decided here. The port of a Gateway API parentRef is attachment and counts in every dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from waypoint.routes.model import Block


class Dialect(Enum):
    """Who evaluates the block."""

    SIDECAR = "sidecar"
    AMBIENT = "ambient"
    ISTIO_WAYPOINT = "istio-waypoint"
    ISTIO_GATEWAY = "istio-gateway"


@dataclass(frozen=True, slots=True)
class Asking:
    """The side of the question that is the same for every connection of one table.

    ``gateway`` is ``mesh`` or ``namespace/name``; ``port`` is the service port, or the server port of a gateway.
    """

    gateway: str
    port: int
    namespace: str = ""
    labels: Mapping[str, str] | None = None


def unsupported_attributes(block: Block) -> tuple[str, ...]:
    """The attributes with a value that ambient does not evaluate, by their names in the document."""
    found = []
    if block.uses_subnets:
        found.append("destinationSubnets")
    if block.port:
        found.append("port")
    if block.source_labels:
        found.append("sourceLabels")
    if block.source_namespace:
        found.append("sourceNamespace")
    return tuple(found)


def refusal(dialect: Dialect, block: Block, asking: Asking) -> str:
    """Why the block does not match, or an empty string when it does."""
    if block.invalid:
        return block.invalid
    if block.attached_port and block.attached_port != asking.port:
        return f"attached to port {block.attached_port}, the connection is on {asking.port}"
    if block.gateways and asking.gateway not in block.gateways:
        return f"gateways {', '.join(block.gateways)} do not include {asking.gateway}"
    if dialect is Dialect.AMBIENT:
        attributes = unsupported_attributes(block)
        return (
            f"{', '.join(attributes)} not evaluated in ambient mode, so it never applies"
            if attributes
            else ""
        )
    if block.port and block.port != asking.port:
        return f"port {block.port} is not {asking.port}"
    if dialect is Dialect.ISTIO_GATEWAY:
        return ""
    if dialect is Dialect.ISTIO_WAYPOINT:
        if block.source_labels:
            return "sourceLabels never match at a waypoint"
        return "sourceNamespace never matches at a waypoint" if block.source_namespace else ""
    if block.source_namespace and block.source_namespace != asking.namespace:
        return f"sourceNamespace {block.source_namespace} is not {asking.namespace or 'known'}"
    labels = asking.labels or {}
    for key, value in block.source_labels.items():
        if labels.get(key) != value:
            return f"sourceLabels {key}={value}, the client has {labels.get(key, 'no such label')}"
    return ""
