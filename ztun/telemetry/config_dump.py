"""Everything ``/config_dump`` tells: the mesh, the certificates, the live connections and the settings.

The parts come from callables that return copies or immutable values: they run on the admin thread while the
event loop goes on.
"""

from __future__ import annotations

import base64
import platform
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.spiffe import SpiffeId
from ztun import __version__
from ztun.mesh.model import Workload
from ztun.mesh.snapshot import Snapshot
from ztun.telemetry.dump import Json, mesh_dump

REDACTED = "[redacted]"
MAX_DEPTH = 12  # settings are a few levels deep; more is an object that refers to itself

_SECRET_WORDS = frozenset(
    {
        "secret",
        "token",
        "password",
        "passwd",
        "credential",
        "credentials",
        "authorization",
        "header",
        "headers",
        "key",
    }
)
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


class CertificateEntry(Protocol):
    """What the certificate store tells about one identity."""

    @property
    def identity(self) -> SpiffeId:
        """Whose certificate it is."""

    @property
    def state(self) -> str:
        """``Available``, ``Initializing`` or ``Unavailable: why``."""

    @property
    def chain(self) -> Sequence[x509.Certificate]:
        """Leaf first; empty while there is none."""

    @property
    def roots(self) -> Sequence[x509.Certificate]:
        """The roots that peers are checked against."""


@dataclass(frozen=True, slots=True)
class ConnectionEntry:
    """A live connection of a local workload. Addresses are ``ip:port``, times are seconds.

    ``original_destination`` is what the client asked for, ``actual_destination`` where the bytes go.
    ``bytes_sent`` and ``bytes_received`` are seen from the local pod.
    """

    workload: Workload
    direction: Literal["inbound", "outbound"]
    source: str
    original_destination: str
    actual_destination: str
    protocol: Literal["HBONE", "TCP"]
    age_seconds: float = 0.0
    idle_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    half_closed: bool = False


@dataclass(frozen=True, slots=True)
class ServedWorkload:
    """A workload this proxy serves; ``up`` is False while its listeners are being set up."""

    workload: Workload
    up: bool = True


def _nothing() -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class ConfigDump:
    """Where the parts of the dump come from. Each call must be safe on another thread."""

    snapshot: Callable[[], Snapshot]
    certificates: Callable[[], Sequence[CertificateEntry]] = _nothing
    connections: Callable[[], Sequence[ConnectionEntry]] = _nothing
    settings: Callable[[], Mapping[str, object]] = dict
    workloads: Callable[[], Sequence[ServedWorkload]] = _nothing
    version: Mapping[str, str] = field(
        default_factory=lambda: {"version": __version__, "pythonVersion": platform.python_version()}
    )

    def collect(self) -> dict[str, Json]:
        """The whole dump as JSON values."""
        snapshot = self.snapshot()
        return {
            **mesh_dump(snapshot),
            "stagedServices": {},
            "staticConfig": {},
            "version": dict(self.version),
            "config": redact(self.settings()),
            "certificates": [
                certificate_dump(entry) for entry in sorted(self.certificates(), key=lambda one: one.identity)
            ],
            "workloadState": workload_state(self.workloads(), self.connections()),
            "problems": [str(problem) for problem in snapshot.problems],
            "generation": snapshot.generation,
        }


def certificate_dump(entry: CertificateEntry) -> dict[str, Json]:
    """One identity with its chain (leaf first) and roots; private keys are not in reach."""
    return {
        "identity": str(entry.identity),
        "state": entry.state,
        "certChain": [_certificate(one) for one in entry.chain],
        "rootCerts": [_certificate(one) for one in entry.roots],
    }


def _certificate(certificate: x509.Certificate) -> Json:
    return {
        "pem": base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode("ascii"),
        "serialNumber": str(certificate.serial_number),
        "validFrom": _moment(certificate.not_valid_before_utc),
        "expirationTime": _moment(certificate.not_valid_after_utc),
    }


def _moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def workload_state(
    served: Sequence[ServedWorkload], connections: Sequence[ConnectionEntry]
) -> dict[str, Json]:
    """Workloads by uid with their connections; having connections is enough to be in it."""
    workloads = {one.workload.uid: one for one in served}
    by_uid: dict[str, list[ConnectionEntry]] = {}
    for connection in connections:
        uid = connection.workload.uid
        workloads.setdefault(uid, ServedWorkload(connection.workload))
        by_uid.setdefault(uid, []).append(connection)
    return {
        uid: {
            "state": "Up" if one.up else "Pending",
            "info": {
                "name": one.workload.name,
                "namespace": one.workload.namespace,
                "trustDomain": one.workload.trust_domain,
                "serviceAccount": one.workload.service_account,
            },
            "connections": {
                direction: [
                    _connection(connection)
                    for connection in sorted(by_uid.get(uid, ()), key=_connection_order)
                    if connection.direction == direction
                ]
                for direction in ("inbound", "outbound")
            },
        }
        for uid, one in sorted(workloads.items())
    }


def _connection_order(connection: ConnectionEntry) -> tuple[str, str]:
    return (connection.source, connection.original_destination)


def _connection(connection: ConnectionEntry) -> Json:
    return {
        "src": connection.source,
        "originalDst": connection.original_destination,
        "actualDst": connection.actual_destination,
        "protocol": connection.protocol,
        "ageSeconds": round(connection.age_seconds, 3),
        "idleSeconds": round(connection.idle_seconds, 3),
        "bytesSent": connection.bytes_sent,
        "bytesReceived": connection.bytes_received,
        "halfClosed": connection.half_closed,
    }


def redact(value: object, *, depth: int = 0) -> Json:
    """Settings as JSON: camelCase names, plain values, and nothing secret.

    A text is secret when its name has a word such as "token" or "key" in it; so is the user part of a URL. Numbers
    are limits and times, a length of time is in seconds.
    """
    if depth > MAX_DEPTH:
        return "..."
    if is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return {
            _camel(name): REDACTED if _is_secret(name, one) else redact(one, depth=depth + 1)
            for name, one in (
                (str(key.value if isinstance(key, Enum) else key), one) for key, one in value.items()
            )
        }
    if isinstance(value, list | tuple):
        return [redact(one, depth=depth + 1) for one in value]
    if isinstance(value, Set):
        return [redact(one, depth=depth + 1) for one in sorted(value, key=str)]
    if isinstance(value, Enum):
        return redact(value.value, depth=depth + 1)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    text = str(value)
    return REDACTED if "PRIVATE KEY-----" in text else _USER_INFO.sub(f"{REDACTED}@", text)


def _is_secret(name: str, value: object) -> bool:
    if not value or isinstance(value, bool | int | float):
        return False
    return not _SECRET_WORDS.isdisjoint(word.lower() for word in _WORDS.findall(name))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)
