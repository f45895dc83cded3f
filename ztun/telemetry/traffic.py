"""The counters of Istio's TCP metrics: plain integers that the event loop adds to and the scrape thread
reads.

Reading an integer while another thread adds to it gives the value before or after; that is all a scrape
needs, so neither side takes a lock. A label set whose connections have all ended is forgotten after a while,
and the number of label sets is capped; the rest is counted under labels that are ``unknown``. Of sources that are
known by their own words only, which a peer may change with each connection, a tenth of them is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ztun.mesh.baggage import Baggage
from ztun.telemetry.labels import NAMES_AFTER_FLAGS, NAMES_BEFORE_FLAGS, LabelValues, TrafficLabels

MAX_SERIES = 10_000  # about 2 KB each, text included: 20 MB at most
CLAIMED_SHARE = 10  # one in so many
IDLE_SECONDS = 900.0  # outlives the 5 minutes Prometheus looks back and the usual rate() windows
PIECE_SERIES = 100  # well under a millisecond to write
NO_FLAG = "-"

_OPENED, _CLOSED, _RECEIVED, _SENT, _FAILED = range(5)
_FAMILIES = (
    ("istio_tcp_connections_opened", "Connections opened"),
    ("istio_tcp_connections_closed", "Connections closed, for any reason"),
    ("istio_tcp_received_bytes", "Bytes from client to server"),
    ("istio_tcp_sent_bytes", "Bytes from server to client"),
    ("istio_tcp_connections_failed", "Connections closed with a response flag (unstable)"),
)


class TrafficSeries:
    """The counters of one label set. Only the event-loop thread writes.

    ``received`` counts bytes from client to server, ``sent`` bytes from server to client, on both reporters
    (the direction of Istio's sidecars). Add to ``opened`` once per connection and call ``closed`` once at its
    end.
    """

    __slots__ = ("_clock", "_ends", "_text", "last_used", "opened", "received", "sent", "values")

    def __init__(self, values: LabelValues, clock: Callable[[], float]) -> None:
        self.opened = 0
        self.received = 0
        self.sent = 0
        self.values = values
        self.last_used = clock()
        self._ends: dict[str, int] = {}
        self._clock = clock
        self._text: tuple[str, str] | None = None

    def closed(self, flag: str = NO_FLAG) -> None:
        """A connection ended; any flag but ``-`` also counts it as failed."""
        self._ends[flag] = self._ends.get(flag, 0) + 1
        self.last_used = self._clock()

    @property
    def live(self) -> int:
        """Connections opened and not closed."""
        return self.opened - sum(self._ends.values())

    def lines(self, family: int) -> str:
        """The lines of one family, by its place in the list of families."""
        head, tail = self._text or self._render_labels()
        name = _FAMILIES[family][0]
        if family in (_CLOSED, _FAILED):
            ends = [(flag, n) for flag, n in list(self._ends.items()) if family == _CLOSED or flag != NO_FLAG]
            return "".join([f"{name}_total{head}{flag}{tail} {count}\n" for flag, count in ends])
        count = self.opened if family == _OPENED else self.received if family == _RECEIVED else self.sent
        return f"{name}_total{head}{NO_FLAG}{tail} {count}\n"

    def _render_labels(self) -> tuple[str, str]:
        before, after = self.values
        head = ",".join(map(_pair, NAMES_BEFORE_FLAGS, before))
        tail = ",".join(map(_pair, NAMES_AFTER_FLAGS, after))
        self._text = (f'{{{head},response_flags="', f'",{tail}}}')
        return self._text


def _pair(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'{name}="{escaped}"'


class TrafficTable:
    """All label sets of one proxy. ``series`` and ``sweep`` belong to the event-loop thread."""

    def __init__(self, clock: Callable[[], float], *, max_series: int = MAX_SERIES) -> None:
        self.overflowed = 0
        """Connections counted under unknown labels because the table was full."""
        self._clock = clock
        self._max_series = max_series
        self._series: dict[LabelValues, TrafficSeries] = {}
        self._claimed: set[LabelValues] = set()
        """Those of them whose source is known by its own words only."""
        self._swept = clock()

    def __len__(self) -> int:
        return len(self._series)

    def series(self, labels: TrafficLabels) -> TrafficSeries:
        """The counters for these labels, new ones when they were not seen lately."""
        values = labels.values()
        found = self._series.get(values)
        if found is not None:
            found.last_used = self._clock()
            return found
        claimed = isinstance(labels.source, Baggage)
        if self._is_full(claimed):
            self.sweep()
        if self._is_full(claimed):
            self.overflowed += 1
            anybody = labels._replace(source=None)
            values = labels.anonymous() if self._is_full(claimed=False) else anybody.values()
        elif claimed:
            self._claimed.add(values)
        return self._series.setdefault(values, TrafficSeries(values, self._clock))

    def _is_full(self, claimed: bool) -> bool:
        """Whether there is no room for another label set, whose source may be known by its own words only."""
        many = len(self._claimed) >= self._max_series // CLAIMED_SHARE
        return len(self._series) >= self._max_series or (claimed and many)

    def sweep(self) -> int:
        """Forget label sets without connections that were idle too long; returns how many.

        Does nothing when called again within a tenth of that time, so that a full table stays cheap.
        """
        now = self._clock()
        if now - self._swept < IDLE_SECONDS / 10:
            return 0
        self._swept = now
        idle = [
            key for key, one in self._series.items() if now - one.last_used >= IDLE_SECONDS and one.live <= 0
        ]
        for key in idle:
            del self._series[key]
            self._claimed.discard(key)
        return len(idle)

    def exposition(self) -> Iterator[str]:
        """The families in OpenMetrics text, in pieces of some hundred lines; safe on the scrape thread.

        Families without samples are left out. Written here and not by the client library, which renders each
        of some 27 labels again for every sample of every scrape: the interpreter's lock is shared with the
        packets. It also keeps ztunnel's order of labels.
        """
        rows = list(self._series.values())
        for family, (name, help_text) in enumerate(_FAMILIES):
            head = f"# HELP {name} {help_text}.\n# TYPE {name} counter\n"
            for start in range(0, len(rows), PIECE_SERIES):
                if text := "".join([one.lines(family) for one in rows[start : start + PIECE_SERIES]]):
                    yield head + text
                    head = ""
