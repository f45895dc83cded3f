"""From a config dump to sorted rows: the columns of ``istioctl ztunnel-config``, and some of our own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from ztun.cli.dump_models import Certificate, Connection, Dump, Gateway, Shape

SortKey: TypeAlias = Literal["", "age", "bytes", "idle"]
Item: TypeAlias = Mapping[str, object]

MAX_SERIAL_DIGITS = 49  # RFC 5280 section 4.1.2.2: 20 octets
_NOT_AVAILABLE = "NA"
_STEPS = ((86400, "d"), (3600, "h"), (60, "m"))


@dataclass(frozen=True, slots=True)
class Listing:
    """A table and, for the machine-readable outputs, the objects behind it in the same order."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    items: tuple[Item, ...]


def list_workloads(dump: Dump, *, namespace: str = "", node: str = "", address: str = "") -> Listing:
    """Workloads by namespace and name."""
    names = _Names(dump)
    chosen = sorted(
        (
            one
            for one in dump.workloads
            if (not namespace or one.namespace == namespace)
            and (not node or one.node == node)
            and (not address or address in one.workload_ips)
        ),
        key=lambda one: (one.namespace, one.name, one.uid),
    )
    rows = [
        (
            one.namespace,
            one.name,
            one.workload_ips[0] if one.workload_ips else "",
            one.node,
            names.waypoint(one.waypoint),
            one.protocol,
        )
        for one in chosen
    ]
    return _listing(("NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"), rows, chosen)


def list_services(dump: Dump, *, namespace: str = "") -> Listing:
    """Services by namespace and name; ENDPOINTS is ready/all."""
    names = _Names(dump)
    chosen = sorted(
        (one for one in dump.services if not namespace or one.namespace == namespace),
        key=lambda one: (one.namespace, one.name, one.hostname),
    )
    rows = []
    for one in chosen:
        ready = sum(endpoint.status == "Healthy" for endpoint in one.endpoints.values())
        vip = next((vip.partition("/")[2] for vip in (*one.vips, *one.cidr_vips)), "")
        rows.append(
            (one.namespace, one.name, vip, names.waypoint(one.waypoint), f"{ready}/{len(one.endpoints)}")
        )
    return _listing(("NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"), rows, chosen)


def list_policies(dump: Dump, *, namespace: str = "") -> Listing:
    """Policies by namespace and name."""
    chosen = sorted(
        (one for one in dump.policies if not namespace or one.namespace == namespace),
        key=lambda one: (one.namespace, one.name),
    )
    rows = [(one.namespace, one.name, one.action, one.scope) for one in chosen]
    return _listing(("NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"), rows, chosen)


def list_certificates(dump: Dump, *, now: datetime) -> Listing:
    """Certificates by identity: leaf, intermediates, roots. Serial numbers are hexadecimal."""
    chosen = sorted(dump.certificates, key=lambda one: (one.identity, one.state))
    rows: list[tuple[str, ...]] = []
    for one in chosen:
        status = one.state.partition(":")[0]
        kinds = ["Leaf", *["Intermediate"] * len(one.cert_chain)][: len(one.cert_chain)]
        certificates = [
            *zip(kinds, one.cert_chain, strict=True),
            *(("Root", root) for root in one.root_certs),
        ]
        for kind, certificate in certificates:
            rows.append((one.identity, kind, status, *_certificate_cells(certificate, now)))
        if not certificates:
            blank = (_NOT_AVAILABLE,) * 3
            rows.append((one.identity, _NOT_AVAILABLE, status, "false", *blank))
    columns = ("CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE")
    return _listing(columns, rows, chosen)


def list_connections(
    dump: Dump, *, namespace: str = "", direction: str = "", sort: SortKey = "", raw: bool = False
) -> Listing:
    """Connections by workload, or the oldest, largest or most idle first; ``raw`` shows bare addresses."""
    names = _Names(dump)
    found = [
        one
        for one in _connections(dump)
        if (not namespace or one.namespace == namespace) and (not direction or one.direction == direction)
    ]
    found.sort(key=lambda one: (one.namespace, one.workload, one.direction, one.local, one.remote))
    if sort:
        found.sort(key=lambda one: one.sort_value(sort), reverse=True)
    shown = (lambda address: address) if raw else names.address
    rows = [
        (
            f"{one.workload}.{one.namespace}",
            one.direction.capitalize(),
            shown(one.local),
            shown(one.remote),
            shown(one.connection.original_dst),
            one.connection.protocol,
            duration(one.connection.age_seconds),
            duration(one.connection.idle_seconds),
            str(one.connection.bytes_sent),
            str(one.connection.bytes_received),
        )
        for one in found
    ]
    columns = ("WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL", "AGE", "IDLE", "SENT")
    items = tuple(
        {
            "workload": one.workload,
            "namespace": one.namespace,
            "direction": one.direction,
            **_plain(one.connection),
        }
        for one in found
    )
    return Listing((*columns, "RECEIVED"), tuple(rows), items)


@dataclass(frozen=True, slots=True)
class _Line:
    workload: str
    namespace: str
    direction: str
    local: str
    remote: str
    connection: Connection

    def sort_value(self, sort: SortKey) -> float:
        one = self.connection
        if sort == "bytes":
            return one.bytes_sent + one.bytes_received
        return one.idle_seconds if sort == "idle" else one.age_seconds


def _connections(dump: Dump) -> Iterator[_Line]:
    for state in dump.workload_state.values():
        name, namespace = state.info.name, state.info.namespace
        for one in state.connections.inbound:
            yield _Line(name, namespace, "inbound", one.actual_dst, one.src, one)
        for one in state.connections.outbound:
            yield _Line(name, namespace, "outbound", one.src, one.actual_dst, one)


class _Names:
    """Names for the addresses of a dump: a service before a workload, as istioctl does."""

    def __init__(self, dump: Dump) -> None:
        self._services = {vip.partition("/")[2]: one for one in dump.services for vip in one.vips}
        self._by_key = {f"{one.namespace}/{one.hostname}": one for one in dump.services}
        self._workloads = {
            ip: f"{one.name}.{one.namespace}" for one in dump.workloads for ip in one.workload_ips
        }

    def waypoint(self, gateway: Gateway | None) -> str:
        if gateway is None or not gateway.destination:
            return "None"
        destination = gateway.destination
        service = self._by_key.get(destination) or self._services.get(destination.partition("/")[2])
        return service.name if service is not None else destination

    def address(self, address: str) -> str:
        host, separator, port = address.rpartition(":")
        ip = host.strip("[]")
        service = self._services.get(ip)
        name = service.hostname if service is not None else self._workloads.get(ip)
        return f"{name}{separator}{port}" if name else address


def duration(seconds: float) -> str:
    """A length of time in the two largest units: ``3h12m``, ``42s``."""
    whole = int(seconds)
    for index, (step, unit) in enumerate(_STEPS):
        if whole >= step:
            finer, finer_unit = _STEPS[index + 1] if index + 1 < len(_STEPS) else (1, "s")
            return f"{whole // step}{unit}{whole % step // finer}{finer_unit}"
    return f"{whole}s"


def _certificate_cells(certificate: Certificate, now: datetime) -> tuple[str, str, str, str]:
    serial = certificate.serial_number
    decimal = serial.isdecimal() and len(serial) <= MAX_SERIAL_DIGITS
    shown = f"{int(serial):x}" if decimal else serial or _NOT_AVAILABLE
    begin, end = _moment(certificate.valid_from), _moment(certificate.expiration_time)
    valid = begin is not None and end is not None and begin <= now < end
    return (
        "true" if valid else "false",
        shown,
        certificate.expiration_time or _NOT_AVAILABLE,
        certificate.valid_from or _NOT_AVAILABLE,
    )


def _moment(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _listing(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], chosen: Sequence[Shape]) -> Listing:
    return Listing(columns, tuple(rows), tuple(map(_plain, chosen)))


def _plain(shape: Shape) -> Item:
    """The object as it stands in the dump."""
    return shape.model_dump(mode="json", by_alias=True, exclude_unset=True)
