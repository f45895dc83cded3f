"""The connections that are open, and how each of them ends: one close reason, one log line, one count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ztun.errors import PolicyDenied, RelayError, ZtunError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.model import Workload
from ztun.telemetry.access_log import ConnectionReport
from ztun.telemetry.config_dump import ConnectionEntry
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.traffic import NO_FLAG, TrafficSeries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from certs.bundle import TrustBundle
    from certs.peer import PeerIdentity
    from ztun.config import ConnectionTimeouts
    from ztun.mesh.model import Authorization, Service
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.relay import Relay
    from ztun.proxy.site import Site
    from ztun.telemetry.access_log import AccessLog
    from ztun.telemetry.metrics import Metrics

JUDGE_SLICE = 200  # connections judged before the loop gets a turn: about a millisecond
SWEEP_SLICE = 500  # connections looked at before the loop gets a turn: less than a millisecond
_SERIES_CACHE_SECONDS = 60.0  # shorter than the table's patience with idle label sets


@dataclass(slots=True, eq=False)
class LiveConnection:
    """One proxied connection from the decision to its end. Times are the loop's, in seconds."""

    direction: Literal["inbound", "outbound"]
    local: Workload
    source_addr: str
    original_destination: str
    actual_destination: str
    started: float
    labels: TrafficLabels
    hbone_addr: str = ""
    application: str = ""
    """Inbound only: the address of the application that was dialled."""
    attempt: Attempt | None = None
    """What authorization saw, for judging again; None where nothing is enforced (outbound)."""
    policies: Callable[[Snapshot], Sequence[Authorization]] | None = None
    """The policies that apply to it, where that is not those of ``local`` (a waypoint judges for others)."""
    peer: PeerIdentity | None = None
    client: PeerIdentity | None = None
    """A client of the mesh whose TLS ends at a gateway; ``peer`` is the other end then."""
    site: Site | None = None
    """Where its sockets are, in in-pod mode the pod's own."""
    relay: Relay | None = None
    series: TrafficSeries | None = None
    published_up: int = 0
    published_down: int = 0
    half_closed_since: float = 0.0
    moved: int = 0
    moved_at: float = 0.0
    unacknowledged: int = 0
    idle_timeout: float = 0.0
    """From the destination's traffic policy, as ``ends_at``; 0 switches a limit off."""
    ends_at: float = 0.0
    on_end: Callable[[], None] | None = None
    """Called once when it is over, however it ended."""

    @property
    def bytes_up(self) -> int:
        """Bytes from client to server."""
        return self.relay.bytes_up if self.relay is not None else 0

    @property
    def bytes_down(self) -> int:
        """Bytes from server to client."""
        return self.relay.bytes_down if self.relay is not None else 0


class Connections:
    """All open connections of a proxy."""

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog,
        timeouts: ConnectionTimeouts,
        clock: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self._timeouts = timeouts
        self._clock = clock
        self._open: dict[LiveConnection, None] = {}
        self._cached: dict[tuple[object, ...], TrafficSeries] = {}
        self._cached_at = clock()
        self._half_closed = (0, 0.0)
        self.on_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[LiveConnection]:
        return iter(list(self._open))

    def opened(self, connection: LiveConnection) -> None:
        """From here on the connection counts, and ``finished`` must follow."""
        connection.series = self._series(connection.labels)
        connection.series.opened += 1
        connection.moved_at = connection.started
        if connection.site is not None:
            connection.site.connections += 1
        self._open[connection] = None
        if self._access_log.wants_opened:
            self._access_log.opened(self._report(connection, None))

    def rerouted(self, connection: LiveConnection, labels: TrafficLabels, failure: ZtunError) -> None:
        """The endpoint that was chosen first failed and another one took the connection: both are counted."""
        if connection.series is not None:
            connection.series.closed(failure.flag)
        self._metrics.failed(failure)
        connection.labels = labels
        connection.series = self._series(labels)
        connection.series.opened += 1

    def finished(self, connection: LiveConnection, error: ZtunError | None) -> None:
        """The end, orderly (None) or not."""
        if connection not in self._open:
            return
        del self._open[connection]
        if connection.site is not None:
            connection.site.connections -= 1
        if connection.on_end is not None:
            connection.on_end()
        self._publish(connection)
        if connection.series is not None:
            connection.series.closed(error.flag if error is not None else NO_FLAG)
        if error is not None:
            self._metrics.failed(error)
        self._access_log.complete(self._report(connection, error))
        if not self._open and self.on_empty is not None:
            self.on_empty()

    def refused(
        self, direction: Literal["inbound", "outbound"], source_addr: str, destination: str, error: ZtunError
    ) -> None:
        """A connection that never came to a decision: a log line and a failure count, no traffic metrics."""
        self._metrics.failed(error)
        self._access_log.failed(
            ConnectionReport(
                source_addr=source_addr, destination_addr=destination, direction=direction, error=error
            )
        )

    # -- judging again ---------------------------------------------------------------------------------------

    def judge_again(self, snapshot: Snapshot) -> Iterator[int]:
        """Apply the policies of a new snapshot to what is open, in slices: how many connections each of them closed."""
        self._cached.clear()
        closed = 0
        for number, connection in enumerate(self):
            if number % JUDGE_SLICE == JUDGE_SLICE - 1:
                yield closed
                closed = 0
            if connection.attempt is None or connection.relay is None or connection.relay.finished:
                continue
            if connection.policies is not None:
                policies = connection.policies(snapshot)
            else:
                local = snapshot.workload_by_uid(connection.local.uid)
                if local is None:
                    continue  # the pod is going; its listener's owner decides
                policies = snapshot.policies_for(local)
            verdict = authorize(policies, connection.attempt)
            if not verdict.allowed:
                closed += 1
                connection.relay.cut(
                    PolicyDenied(
                        "policy_late_rejection",
                        f"connection closed due to policy change: {verdict.reason}",
                        hint="an authorization policy that denies this connection was added or changed",
                    )
                )
        yield closed

    def cut_where(self, condition: Callable[[LiveConnection], bool], error: ZtunError) -> int:
        """Close the connections that meet a condition; gives how many."""
        doomed = [connection for connection in self if connection.relay is not None and condition(connection)]
        for connection in doomed:
            assert connection.relay is not None
            connection.relay.cut(error)
        return len(doomed)

    def peers_revoked(self, bundle: TrustBundle) -> Iterable[LiveConnection]:
        """The connections of which an end shows a chain that is revoked by ``bundle``."""
        return [
            one
            for one in self
            if any(end is not None and bundle.is_revoked(end.chain) for end in (one.peer, one.client))
        ]

    # -- time ------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> Iterator[None]:
        """Once a second, in slices: publish byte counts, end half-closed and idle connections that are stuck."""
        if now - self._cached_at >= _SERIES_CACHE_SECONDS:
            self._cached.clear()
            self._cached_at = now
        half_closed, oldest = 0, now
        for number, connection in enumerate(self):
            if number % SWEEP_SLICE == SWEEP_SLICE - 1:
                yield
            relay = connection.relay
            if relay is None or relay.finished:
                continue
            self._publish(connection)
            moved = connection.published_up + connection.published_down + relay.bytes_delivered
            if moved != connection.moved:
                connection.moved, connection.moved_at = moved, now
            if relay.half_closed:
                connection.half_closed_since = connection.half_closed_since or now
                half_closed += 1
                oldest = min(oldest, connection.half_closed_since)
            self._end_if_stuck(connection, relay, now)
        self._half_closed = (half_closed, now - oldest)

    def half_closed(self) -> tuple[int, float]:
        """How many connections are half closed, and for how many seconds the oldest is (as of the last sweep)."""
        return self._half_closed

    def _end_if_stuck(self, connection: LiveConnection, relay: Relay, now: float) -> None:
        limits = self._timeouts
        idle = connection.idle_timeout or limits.idle
        if connection.ends_at and now >= connection.ends_at:
            relay.cut(
                RelayError(
                    "max_duration",
                    f"the connection was open for {now - connection.started:.0f} s",
                    hint="connectionPool.tcp.maxConnectionDuration of the DestinationRule sets the limit",
                ),
                ErrorCode.NO_ERROR,
            )
        elif connection.half_closed_since and limits.half_closed:
            since = max(connection.half_closed_since, connection.moved_at)
            if now - since >= limits.half_closed and not self._still_read(connection, relay, now):
                relay.cut(
                    RelayError(
                        "half_closed_timeout",
                        f"one side ended and the other was silent for {limits.half_closed:g} s",
                        hint="ZTUN_HALF_CLOSED_TIMEOUT sets the limit",
                    )
                )
        elif idle and now - connection.moved_at >= idle and not self._still_read(connection, relay, now):
            hint = "ZTUN_IDLE_TIMEOUT sets the limit"
            if connection.idle_timeout:
                hint = "connectionPool.tcp.idleTimeout of the DestinationRule sets the limit"
            relay.cut(RelayError("idle_timeout", f"no byte for {idle:g} s", hint=hint), ErrorCode.NO_ERROR)

    def _still_read(self, connection: LiveConnection, relay: Relay, now: float) -> bool:
        """Whether what the kernel holds for a slow reader has become another amount since this was last asked."""
        before, connection.unacknowledged = connection.unacknowledged, relay.bytes_unacknowledged
        if connection.unacknowledged in (0, before):
            return False
        connection.moved_at = now
        return True

    # -- reports ---------------------------------------------------------------------------------------------

    def entries(self) -> list[ConnectionEntry]:
        """For the admin dump; safe on another thread."""
        now = self._clock()
        return [
            ConnectionEntry(
                workload=one.local,
                direction=one.direction,
                source=one.source_addr,
                original_destination=one.original_destination,
                actual_destination=one.application or one.actual_destination,
                protocol="HBONE" if one.hbone_addr else "TCP",
                age_seconds=now - one.started,
                idle_seconds=now - one.moved_at,
                bytes_sent=one.bytes_up if one.direction == "outbound" else one.bytes_down,
                bytes_received=one.bytes_down if one.direction == "outbound" else one.bytes_up,
                half_closed=bool(one.half_closed_since),
            )
            for one in list(self._open)
        ]

    def _publish(self, connection: LiveConnection) -> None:
        series, relay = connection.series, connection.relay
        if series is None or relay is None:
            return
        up, down = relay.bytes_up, relay.bytes_down
        series.received += up - connection.published_up
        series.sent += down - connection.published_down
        connection.published_up, connection.published_down = up, down

    def _series(self, labels: TrafficLabels) -> TrafficSeries:
        if not isinstance(labels.source, Workload) or labels.destination is None:
            return self._metrics.traffic(labels)
        key = (
            labels.reporter,
            labels.source.uid,
            labels.destination.uid,
            _key(labels.service),
            labels.source_principal,
            labels.destination_principal,
            labels.mutual_tls,
        )
        found = self._cached.get(key)
        if found is None:
            found = self._cached[key] = self._metrics.traffic(labels)
        return found

    def _report(self, connection: LiveConnection, error: ZtunError | None) -> ConnectionReport:
        labels = connection.labels
        up, down = connection.bytes_up, connection.bytes_down
        outbound = connection.direction == "outbound"
        return ConnectionReport(
            source_addr=connection.source_addr,
            destination_addr=connection.actual_destination,
            direction=connection.direction,
            hbone_addr=connection.hbone_addr,
            service=labels.service.hostname if labels.service is not None else "",
            source=labels.source,
            destination=labels.destination,
            source_identity=labels.source_principal if labels.mutual_tls else None,
            destination_identity=labels.destination_principal if labels.mutual_tls else None,
            bytes_sent=up if outbound else down,
            bytes_recv=down if outbound else up,
            duration_seconds=self._clock() - connection.started,
            error=error,
        )


def _key(service: Service | None) -> object:
    return service.key if service is not None else None
