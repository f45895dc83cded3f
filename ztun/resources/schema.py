"""What the models of all kinds share: base classes, bounded text, the words of Istio's labels."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ztun.mesh.model import canonical_ip

Text: TypeAlias = Annotated[str, Field(max_length=4096)]
"""Any text of a document; longer than every limit of Kubernetes for a value that is used here."""
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=253)]
Labels: TypeAlias = dict[Name, Annotated[str, Field(max_length=63)]]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
AccountName: TypeAlias = Annotated[
    str, Field(max_length=253, pattern=r"^([a-zA-Z0-9]([-a-zA-Z0-9._]*[a-zA-Z0-9])?)?$")
]
"""A service account, which becomes part of a SPIFFE identity; empty is the default account."""

DATAPLANE_MODE = "istio.io/dataplane-mode"
INJECTION = "istio-injection"
INJECT = "sidecar.istio.io/inject"
SIDECAR_STATUS = "sidecar.istio.io/status"
REDIRECTION = "ambient.istio.io/redirection"
TUNNEL = "networking.istio.io/tunnel"
USE_WAYPOINT = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE = "istio.io/use-waypoint-namespace"
WAYPOINT_CANARY = "istio.io/use-waypoint-canary"
WAYPOINT_CANARY_NAMESPACE = "istio.io/use-waypoint-canary-namespace"
WAYPOINT_CANARY_WEIGHT = "istio.io/use-waypoint-canary-weight"
WAYPOINT_FOR = "istio.io/waypoint-for"
WAYPOINT_CLASS = "istio-waypoint"
INBOUND_BINDING = "ambient.istio.io/waypoint-inbound-binding"
GATEWAY_NAME_LABELS = ("gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name")
EXPORT_TO = "networking.istio.io/exportTo"
TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"
NETWORK = "topology.istio.io/network"
DRY_RUN = "istio.io/dry-run"
AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"


def refuse(message: str, hint: str = "", code: str = "SCHEMA") -> PydanticCustomError:
    """The error for a validator to raise, with a hint for the person who wrote the document."""
    # The texts go in as context, for braces in them must not be taken as placeholders.
    context: dict[str, Any] = {"message": message, "hint": hint, "code": code}
    return PydanticCustomError("document", "{message}", context)


def _canonical(text: str) -> str:
    if not text:
        return ""
    try:
        return canonical_ip(text)
    except ValueError as error:
        raise refuse(f"{text!r} is not an IP address") from error


OptionalIp: TypeAlias = Annotated[str, Field(max_length=64), AfterValidator(_canonical)]
"""An IP address in canonical form, or nothing."""


class Lenient(BaseModel):
    """Part of a core Kubernetes kind: only what is used is modelled, the rest is the API server's affair."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Strict(BaseModel):
    """Part of a kind that is claimed whole: a key nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, data: Any) -> Any:
        """A key without value is a slip (everything below it commented out), and absent often means "all"."""
        if isinstance(data, dict):
            for key, value in data.items():
                if value is None:
                    raise refuse(f"{key} has no value", "give it one or remove the key")
        return data


class OwnerReference(Lenient):
    """Who made an object."""

    kind: Text
    name: Name
    controller: bool | None = None


class Metadata(Lenient):
    """``metadata`` of any kind; name, namespace and creation time are those of the ``Document``."""

    labels: Labels | None = None
    annotations: dict[Name, str] | None = None
    owner_references: list[OwnerReference] | None = Field(default=None, alias="ownerReferences")
    deletion_timestamp: Text | None = Field(default=None, alias="deletionTimestamp")

    def label(self, key: str) -> str:
        """A label's value, empty when absent."""
        return (self.labels or {}).get(key, "")

    def annotation(self, key: str) -> str:
        """An annotation's value, empty when absent."""
        return (self.annotations or {}).get(key, "")


class Object(Lenient):
    """The top of every kind."""

    metadata: Metadata
