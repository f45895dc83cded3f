"""One line per connection, with ztunnel's fields in ztunnel's order.

The line of an orderly end is made on the event loop from parts that connections between the same two workloads
share: 3 us, where a record for the writer thread took as much, and 25 us there with the interpreter's lock. Every other
line is made on the writer thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from certs.spiffe import SpiffeId
from ztun.errors import ZtunError
from ztun.mesh.baggage import Baggage
from ztun.mesh.model import Workload
from ztun.telemetry.levels import DEBUG, ERROR, INFO, WARN, Levels, level_name
from ztun.telemetry.lines import Bare, LogFormat, format_line, quote, text_value, timestamp
from ztun.telemetry.logging import error_fields
from ztun.telemetry.writer import LineWriter

AccessLogMode: TypeAlias = Literal["text", "json", "none"]
SCOPE = "access"
_MAX_WHO = 4096  # pairs of workload and identity whose text is kept; about 0.3 KB each


@dataclass(slots=True)
class ConnectionReport:
    """What is known about one connection; empty strings and None are left out of the line.

    ``source_addr`` is ``ip:port`` of an accepted socket. ``destination_addr`` is where the bytes really go: the next
    hop on the outbound side, the pod's HBONE address on the inbound side. ``hbone_addr`` is the CONNECT authority.
    ``bytes_sent`` and ``bytes_recv`` are seen from the local pod: on the outbound side sent is client to server, on
    the inbound side server to client. Not to be changed once it was handed to the log.
    """

    source_addr: str
    destination_addr: str
    direction: Literal["inbound", "outbound"]
    hbone_addr: str = ""
    service: str = ""
    source: Workload | Baggage | None = None
    destination: Workload | None = None
    source_identity: SpiffeId | None = None
    destination_identity: SpiffeId | None = None
    bytes_sent: int = 0
    bytes_recv: int = 0
    duration_seconds: float = 0.0
    error: ZtunError | None = None


class _Record:
    """A report on its way to the writer thread."""

    __slots__ = ("fields", "level", "message", "report", "style", "when")

    def __init__(
        self,
        style: LogFormat,
        when: float,
        level: int,
        message: str,
        fields: Callable[[ConnectionReport, LogFormat], Iterator[tuple[str, object]]],
        report: ConnectionReport,
    ) -> None:
        self.style = style
        self.when = when
        self.level = level
        self.message = message
        self.fields = fields
        self.report = report

    def render(self) -> str:
        present = [
            (key, value) for key, value in self.fields(self.report, self.style) if value not in ("", None)
        ]
        return format_line(self.style, self.when, level_name(self.level), SCOPE, self.message, present)


def _who(
    prefix: str, workload: Workload | Baggage | None, identity: SpiffeId | None
) -> Iterator[tuple[str, object]]:
    if workload is not None:
        name = workload.name if isinstance(workload, Workload) else ""
        yield f"{prefix}.workload", name or workload.canonical_name
        yield f"{prefix}.namespace", workload.namespace
    elif identity is not None:
        yield f"{prefix}.namespace", identity.namespace
    yield f"{prefix}.identity", identity
    if workload is not None:
        yield f"{prefix}.cluster", workload.cluster_id


def _opened_fields(report: ConnectionReport, _style: LogFormat) -> Iterator[tuple[str, object]]:
    yield "src.addr", Bare(report.source_addr)
    yield from _who("src", report.source, report.source_identity)
    yield "dst.addr", Bare(report.destination_addr)
    yield "dst.hbone_addr", Bare(report.hbone_addr)
    yield "dst.service", report.service
    yield from _who("dst", report.destination, report.destination_identity)
    yield "direction", report.direction


def complete_fields(report: ConnectionReport, style: LogFormat) -> Iterator[tuple[str, object]]:
    """The fields of a line about the end of a connection, in their order."""
    yield from _opened_fields(report, style)
    yield "bytes_sent", report.bytes_sent
    yield "bytes_recv", report.bytes_recv
    yield "duration", f"{int(report.duration_seconds * 1000)}ms"
    yield from _error(report, style)


def _failed_fields(report: ConnectionReport, style: LogFormat) -> Iterator[tuple[str, object]]:
    yield "src.addr", Bare(report.source_addr)
    yield "dst.addr", Bare(report.destination_addr)
    yield "direction", report.direction
    yield from _error(report, style)


def _error(report: ConnectionReport, style: LogFormat) -> Iterator[tuple[str, object]]:
    if report.error is None:
        return
    if style == "json":
        yield from error_fields(report.error).items()
    else:
        yield "error", str(report.error)


@lru_cache(maxsize=4096)  # destinations come again; the source of a connection is new each time
def _bare(address: str) -> str:
    return text_value(Bare(address))


class AccessLog:
    """Writes the records, as the level of the scope ``access`` allows.

    Open records are written when asked for or when that level is debug.
    """

    def __init__(
        self,
        writer: LineWriter,
        *,
        mode: AccessLogMode = "text",
        levels: Levels | None = None,
        open_records: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._style: LogFormat | None = None if mode == "none" else mode
        self._levels = levels or Levels()
        self._open_records = open_records
        self._clock = clock
        self._who: dict[tuple[str, str], tuple[Workload, SpiffeId | None, str]] = {}

    @property
    def wants_opened(self) -> bool:
        """Whether ``opened`` would write a line; asked before a report is built."""
        if self._style is None:
            return False
        return self._levels.enabled(SCOPE, DEBUG) or (
            self._open_records and self._levels.enabled(SCOPE, INFO)
        )

    def opened(self, report: ConnectionReport) -> None:
        """The connection was accepted and tracked."""
        if self._style is not None and self.wants_opened:
            record = _Record(self._style, self._clock(), DEBUG, "connection opened", _opened_fields, report)
            self._writer.put(record)

    def complete(self, report: ConnectionReport) -> None:
        """The connection ended; with ``error`` set the line has level error."""
        if report.error is not None:
            self._put(ERROR, "connection complete", complete_fields, report)
        elif self._style == "json":
            self._put(INFO, "connection complete", complete_fields, report)
        elif self._style is not None and self._levels.enabled(SCOPE, INFO):
            self._writer.put(self._orderly_end(report))

    def _orderly_end(self, report: ConnectionReport) -> str:
        """What ``complete_fields`` gives in the text form, put together from parts that are kept."""
        source = self._who_text("src", report.source, report.source_identity)
        destination = self._who_text("dst", report.destination, report.destination_identity)
        address = _bare(report.destination_addr)
        tunnel = f" dst.hbone_addr={_bare(report.hbone_addr)}" if report.hbone_addr else ""
        service = f" dst.service={quote(report.service)}" if report.service else ""
        return (
            f"{timestamp(self._clock())}\tinfo\taccess\tconnection complete\t"
            f"src.addr={report.source_addr}{source} dst.addr={address}{tunnel}{service}"
            f'{destination} direction="{report.direction}" bytes_sent={report.bytes_sent}'
            f' bytes_recv={report.bytes_recv} duration="{int(report.duration_seconds * 1000)}ms"'
        )

    def _who_text(self, prefix: str, workload: Workload | Baggage | None, identity: SpiffeId | None) -> str:
        """The fields of one end, each with a space in front; the same objects have the same text."""
        known = workload if isinstance(workload, Workload) else None
        key = (prefix, known.uid if known is not None else "")
        kept = self._who.get(key)
        if kept is not None and kept[0] is workload and kept[1] is identity:
            return kept[2]
        text = "".join(
            [
                f" {name}={text_value(value)}"
                for name, value in _who(prefix, workload, identity)
                if value not in ("", None)
            ]
        )
        if known is not None:
            if len(self._who) >= _MAX_WHO:
                self._who.clear()
            self._who[key] = (known, identity, text)
        return text

    def failed(self, report: ConnectionReport) -> None:
        """The connection was refused before it was tracked; such a connection has no metrics."""
        self._put(WARN, "connection failed", _failed_fields, report)

    def _put(
        self,
        level: int,
        message: str,
        fields: Callable[[ConnectionReport, LogFormat], Iterator[tuple[str, object]]],
        report: ConnectionReport,
    ) -> None:
        if self._style is not None and self._levels.enabled(SCOPE, level):
            self._writer.put(_Record(self._style, self._clock(), level, message, fields, report))
