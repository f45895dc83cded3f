"""The numbers of a tunnel: what we advertise, and how long a silent peer is trusted.

Defaults are those of ztunnel, so that either end may be replaced by it.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

DEFAULT_WINDOW_BYTES = 65_535  # RFC 9113 section 6.9.2: before SETTINGS are exchanged
MAX_WINDOW_BYTES = 2**31 - 1  # RFC 9113 section 6.9.1
DEFAULT_MAX_FRAME_BYTES = 16_384  # RFC 9113 section 4.2
ASSUMED_PEER_STREAMS = 100  # ztunnel's pool_max_streams: assumed until the peer's SETTINGS arrive


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What one end advertises and enforces. Sizes in bytes, times in seconds.

    The connection window is four times the stream window: with equal windows one stream that nobody reads would
    stop all the others.
    """

    stream_window: int = 4 * MIB
    connection_window: int = 16 * MIB
    max_frame_size: int = MIB
    max_concurrent_streams: int = 200
    client_header_list_size: int = 16 * KIB
    server_header_list_size: int = 64 * KIB
    max_header_fields: int = 64
    """HBONE needs fewer than 20 fields; more is somebody else's protocol or an attack."""
    held_limit: int = 64 * MIB
    """Payload that a tunnel may hold for streams whose other side does not read. Below it connection credit is
    returned on receipt, so a few stalled streams do not stop the rest; above it only on delivery."""
    ping_interval: float = 10.0
    ping_timeout: float = 20.0
    stall_timeout: float = 300.0
    """A stream counts as stalled when its peer grants no window for this long while bytes wait for it."""
    stalled_allowed: int = 64
    """Stalled streams that a tunnel bears: a consumer may pause, as over TCP. Beyond that the oldest are reset."""
    drain_round_trip: float = 1.0
    """How long after the first GOAWAY the final one follows (RFC 9113 section 6.8 asks for one round trip)."""
