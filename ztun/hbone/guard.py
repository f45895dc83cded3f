"""What a peer may do often, and how often: the flood guards of a tunnel.

1. Every kind of abuse has a budget per second and one per hour. (A budget for life, as other proxies have it, ends
   tunnels that have done nothing wrong but last for weeks.)
2. The budgets count frames that cost us work and carry none of the peer's own: a WINDOW_UPDATE that answers DATA is
   free, a reset of a stream that was answered is free.
3. A spent budget trips the guard; the tunnel then sends GOAWAY with ENHANCE_YOUR_CALM and closes.

The limits are those of sōzu's ``[http2]`` defaults where it has one; the comments name the attack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

WINDOW_SECONDS = 1.0
HOUR_SECONDS = 3600.0
UNLIMITED = 1 << 62


class Abuse(Enum):
    """Kinds of abuse; the value is the ``guard`` label of the metric and the code in the log."""

    RAPID_RESET = "rapid_reset"
    MADE_YOU_RESET = "made_you_reset"
    PING = "ping"
    SETTINGS = "settings"
    EMPTY_DATA = "empty_data"
    WINDOW_UPDATE = "window_update"
    CONTINUATION = "continuation"
    HEADER_LIST = "header_list"
    LARGE_HEADERS = "large_headers"
    UNSENT_CONTROL = "unsent_control"
    STALLED_STREAM = "stalled_stream"
    REFUSED_STREAM = "refused_stream"
    GLITCH = "glitch"


@dataclass(frozen=True, slots=True)
class Budget:
    """How many are allowed in any window of a second, and in any hour."""

    per_window: int
    per_hour: int = UNLIMITED


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """The budgets, and the bounds on single header blocks and on unsent replies."""

    budgets: dict[Abuse, Budget] = field(
        default_factory=lambda: {
            Abuse.RAPID_RESET: Budget(100, 10_000),  # CVE-2023-44487: reset before our answer
            Abuse.MADE_YOU_RESET: Budget(100, 500),  # CVE-2025-8671: frames that make us reset a stream
            Abuse.PING: Budget(100),  # CVE-2019-9512
            Abuse.SETTINGS: Budget(50),  # CVE-2019-9515
            Abuse.EMPTY_DATA: Budget(100),  # CVE-2019-9518
            Abuse.LARGE_HEADERS: Budget(100),  # Huffman-coded bytes cost more to decode than to send
            Abuse.WINDOW_UPDATE: Budget(100),  # credit for bytes that were never sent
            Abuse.STALLED_STREAM: Budget(100, 1_000),  # streams opened and never read
            Abuse.REFUSED_STREAM: Budget(1_000),  # streams beyond MAX_CONCURRENT_STREAMS
            Abuse.GLITCH: Budget(100),  # late or senseless frames that are legal to ignore
        }
    )
    continuation_frames: int = 20  # CVE-2024-27316
    header_block_bytes: int = 65_536  # a block costs its decoder time for every byte, whatever it decodes to
    large_header_bytes: int = 4096  # a block counts as large once for each of these; HBONE's are below one
    control_frame_bytes: int = 65_536  # no legitimate control frame of HBONE comes near it
    unsent_control_bytes: int = 65_536  # CVE-2019-9512 ff.: replies that pile up for a peer that never reads


class GuardTripped(Exception):
    """A budget is spent; the tunnel must be closed with ENHANCE_YOUR_CALM."""

    def __init__(self, abuse: Abuse, message: str) -> None:
        super().__init__(message)
        self.abuse = abuse


class FloodGuard:
    """Counts what one peer does. Times are seconds of any monotonic clock, given by the caller."""

    __slots__ = ("_counts", "_hour_counts", "_hour_start", "_window_start", "limits")

    def __init__(self, limits: GuardLimits) -> None:
        self.limits = limits
        self._counts: dict[Abuse, int] = {}
        self._hour_counts: dict[Abuse, int] = {}
        self._window_start = 0.0
        self._hour_start = 0.0

    def count(self, abuse: Abuse, now: float) -> None:
        """Count one; raises :class:`GuardTripped` when the budget of its second or hour is spent."""
        if now - self._window_start >= WINDOW_SECONDS:
            self._counts.clear()
            self._window_start = now
            if now - self._hour_start >= HOUR_SECONDS:
                self._hour_counts.clear()
                self._hour_start = now
        budget = self.limits.budgets[abuse]
        in_window = self._counts[abuse] = self._counts.get(abuse, 0) + 1
        in_hour = self._hour_counts[abuse] = self._hour_counts.get(abuse, 0) + 1
        if in_window > budget.per_window:
            raise GuardTripped(abuse, f"more than {budget.per_window} {abuse.value} in {WINDOW_SECONDS:g} s")
        if in_hour > budget.per_hour:
            raise GuardTripped(abuse, f"more than {budget.per_hour} {abuse.value} in an hour")
