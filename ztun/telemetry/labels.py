"""The labels of Istio's TCP metrics as ztunnel writes them: same names, same order, same values."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from certs.spiffe import SpiffeId
from ztun.mesh.baggage import Baggage
from ztun.mesh.model import Service, Workload

UNKNOWN = "unknown"

NAMES_BEFORE_FLAGS = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
)
SOURCE_NAMES = NAMES_BEFORE_FLAGS[1:9]
NAMES_AFTER_FLAGS = (
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
)
"""The last four are absent when neither workload is known."""

LabelValues: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Values of the labels before and after ``response_flags``."""


class TrafficLabels(NamedTuple):
    """Who talks to whom, seen by which side.

    ``source`` is what a tunnel's peer says of itself where the mesh does not know its address.
    ``source_principal`` is set from the TLS identity only (or our own identity on the source side of mTLS);
    ``destination_principal`` is the identity of the destination workload.
    """

    reporter: Literal["source", "destination", "waypoint"]
    source: Workload | Baggage | None = None
    destination: Workload | None = None
    service: Service | None = None
    source_principal: SpiffeId | None = None
    destination_principal: SpiffeId | None = None
    mutual_tls: bool = False

    def values(self) -> LabelValues:
        """The values in the order of the names above."""
        before = (
            self.reporter,
            *workload_values(self.source, self.source_principal),
            *_service(self.service),
            *workload_values(self.destination, self.destination_principal),
            "tcp",
        )
        return before, (self._security, *self._places())

    def anonymous(self) -> LabelValues:
        """The values with everything unknown that is of this one connection; there are only four of these."""
        nobody = TrafficLabels(self.reporter, mutual_tls=self.mutual_tls)
        return nobody.values()

    @property
    def _security(self) -> str:
        return "mutual_tls" if self.mutual_tls else UNKNOWN

    def _places(self) -> tuple[str, ...]:
        if self.source is None and self.destination is None:
            return ()
        return (*_locality(self.source), *_locality(self.destination))


def workload_values(workload: Workload | Baggage | None, principal: SpiffeId | None) -> tuple[str, ...]:
    """The values of the eight labels about one workload, ``SOURCE_NAMES`` if it is the source."""
    name = UNKNOWN if principal is None else str(principal)
    if workload is None:
        return (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, name, UNKNOWN, UNKNOWN, UNKNOWN)
    service = workload.canonical_name or UNKNOWN
    revision = workload.canonical_revision or UNKNOWN
    return (
        workload.workload_name or UNKNOWN,
        service,
        revision,
        workload.namespace or UNKNOWN,
        name,
        service,
        revision,
        workload.cluster_id or UNKNOWN,
    )


def _service(service: Service | None) -> tuple[str, str, str]:
    if service is None:
        return (UNKNOWN, UNKNOWN, UNKNOWN)
    return (service.hostname or UNKNOWN, service.namespace or UNKNOWN, service.name or UNKNOWN)


def _locality(workload: Workload | Baggage | None) -> tuple[str, str]:
    if workload is None:
        return (UNKNOWN, UNKNOWN)
    return (workload.locality.region or UNKNOWN, workload.locality.zone or UNKNOWN)
