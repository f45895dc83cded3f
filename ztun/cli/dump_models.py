"""The parts of a config dump that the list commands show; ztunnel's dumps fit, too.

Everything else in a dump is kept, so that the JSON and YAML outputs show it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel


def _values(shape: object) -> object:
    """Older dumps have objects keyed by address where newer ones have lists."""
    return list(shape.values()) if isinstance(shape, dict) else shape


class Shape(BaseModel):
    """camelCase names, unknown fields kept."""

    model_config = ConfigDict(alias_generator=to_camel, extra="allow", frozen=True, allow_inf_nan=False)


class Gateway(Shape):
    """``destination`` is ``namespace/hostname`` or ``network/ip``."""

    destination: str = ""


class Workload(Shape):
    """A workload."""

    name: str
    namespace: str
    uid: str = ""
    workload_ips: tuple[str, ...] = ()
    node: str = ""
    protocol: str = ""
    waypoint: Gateway | None = None


class Endpoint(Shape):
    """A workload behind a service."""

    status: str = "Healthy"


class Service(Shape):
    """A service; ``vips`` are ``network/ip``."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[str, ...] = ()
    cidr_vips: tuple[str, ...] = ()
    endpoints: dict[str, Endpoint] = Field(default_factory=dict)
    waypoint: Gateway | None = None


class Policy(Shape):
    """An authorization policy."""

    name: str
    namespace: str
    action: str
    scope: str


class Certificate(Shape):
    """One certificate of a chain; ``serial_number`` is decimal."""

    serial_number: str = ""
    valid_from: str = ""
    expiration_time: str = ""


class Identity(Shape):
    """An identity and what it is proven with."""

    identity: str
    state: str
    cert_chain: tuple[Certificate, ...] = ()
    root_certs: tuple[Certificate, ...] = ()


class Connection(Shape):
    """A live connection."""

    src: str = ""
    original_dst: str = ""
    actual_dst: str = ""
    protocol: str = ""
    age_seconds: float = 0.0
    idle_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


class Connections(Shape):
    """The connections of a workload by direction."""

    inbound: tuple[Connection, ...] = ()
    outbound: tuple[Connection, ...] = ()


class WorkloadInfo(Shape):
    """Who a workload is."""

    name: str = ""
    namespace: str = ""


class WorkloadState(Shape):
    """A workload that the proxy serves."""

    info: WorkloadInfo = WorkloadInfo()
    connections: Connections = Connections()


class Dump(Shape):
    """A config dump."""

    workloads: Annotated[tuple[Workload, ...], BeforeValidator(_values)]
    services: Annotated[tuple[Service, ...], BeforeValidator(_values)] = ()
    policies: Annotated[tuple[Policy, ...], BeforeValidator(_values)] = ()
    certificates: tuple[Identity, ...] = ()
    workload_state: dict[str, WorkloadState] = Field(default_factory=dict)
