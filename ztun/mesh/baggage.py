"""What a CONNECT request says about its source: the ``baggage``, ``forwarded`` and ``traceparent`` headers.

All of it is the claim of a peer and used for telemetry only. Readers never raise: what is not well formed is
absent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ztun.mesh.address import is_hostname
from ztun.mesh.model import Locality, Workload, WorkloadType, join_host_port

MAX_BAGGAGE_BYTES = 8192  # W3C Baggage section 3.3.2: the total a platform must propagate
MAX_VALUE_BYTES = 253  # the longest name of Kubernetes

_VALUE = re.compile(rf"[\x20-\x7e]{{1,{MAX_VALUE_BYTES}}}", re.ASCII)
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
_TYPES = {f"k8s.{kind.value}.name": kind for kind in WorkloadType}


@dataclass(frozen=True, slots=True)
class Baggage:
    """A workload in its own words; empty strings are unknown. Who it is says its certificate, so that is not here."""

    cluster_id: str = ""
    namespace: str = ""
    workload_name: str = ""
    workload_type: WorkloadType = WorkloadType.POD
    canonical_name: str = ""
    canonical_revision: str = ""
    locality: Locality = field(default_factory=Locality)


NOTHING = Baggage()


def encode_baggage(workload: Workload) -> str:
    """The header value for a source workload, in ztunnel's order; absent values are omitted.

    A value that could not be read back (outside printable ASCII, too long, or with a separator in it) is left out.
    """
    entries = (
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{workload.workload_type.value}.name", workload.workload_name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return ",".join(f"{key}={value}" for key, value in entries if _is_plain(value))


def _is_plain(value: str) -> bool:
    return _VALUE.fullmatch(value) is not None and value == value.strip() and not set(value) & set(",=")


def parse_baggage(lines: Iterable[str]) -> Baggage:
    """Read the lines of the header. Unknown keys and malformed entries are ignored, a later value wins."""
    values: dict[str, str] = {}
    budget = MAX_BAGGAGE_BYTES
    for line in lines:
        budget -= len(line)
        if budget < 0:
            return NOTHING
        for entry in line.split(","):
            key, _, value = entry.strip().partition("=")
            if _is_plain(value):
                values[key] = value
    kind = next((key for key in _TYPES if key in values), "")
    return Baggage(
        cluster_id=values.get("k8s.cluster.name", ""),
        namespace=values.get("k8s.namespace.name", ""),
        workload_name=values.get(kind, ""),
        workload_type=_TYPES.get(kind, WorkloadType.POD),
        canonical_name=values.get("service.name", ""),
        canonical_revision=values.get("service.version", ""),
        locality=Locality(values.get("cloud.region", ""), values.get("cloud.availability_zone", "")),
    )


def encode_forwarded(ip: str, port: int, service_host: str | None = None) -> str:
    """``for="ip:port"`` of the client, and the service it meant, if that is known. RFC 7239 section 4."""
    host = f";host={service_host}" if service_host is not None and is_hostname(service_host) else ""
    return f'for="{join_host_port(ip, port)}"{host}'


def parse_forwarded_host(value: str) -> str | None:
    """The ``host`` of a ``forwarded`` header, or None."""
    for part in value.split(";"):
        key, _, host = part.strip().partition("=")
        if key == "host":
            if len(host) > 1 and host[0] == host[-1] == '"':
                host = host[1:-1]
            return host.lower() if is_hostname(host) else None
    return None


def new_traceparent(rng: random.Random) -> str:
    """A fresh ``traceparent``, not sampled. W3C Trace Context section 3.2."""
    return f"00-{rng.getrandbits(128) or 1:032x}-{rng.getrandbits(64) or 1:016x}-00"


def parse_traceparent(value: str) -> str | None:
    """The value itself if it is a valid ``traceparent`` of version 00, else None."""
    found = _TRACEPARENT.fullmatch(value)
    if found is None or not found[1].strip("0") or not found[2].strip("0"):
        return None
    return value
