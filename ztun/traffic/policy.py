"""The traffic policy of one destination as plain values, every default filled in.

Meanings and defaults are those of Istio's ``DestinationRule.trafficPolicy`` where it acts on TCP. All times are
seconds; ``None`` means "not limited" or "not set".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

DEFAULT_CONNECT_TIMEOUT_SECONDS = 10.0
"""``connectTimeout`` of Istio's mesh configuration."""
DEFAULT_IDLE_TIMEOUT_SECONDS = 3600.0
"""Envoy's TCP proxy idle timeout, which Istio keeps."""
DEFAULT_RING_SIZE = 1024
"""``ringHash.minimumRingSize``."""
DEFAULT_MAGLEV_SIZE = 65_537
"""Envoy's Maglev table size, a prime."""


class Balancing(Enum):
    """How the next endpoint is chosen (``loadBalancer``)."""

    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"
    RING_HASH = "RING_HASH"
    MAGLEV = "MAGLEV"


class TlsMode(Enum):
    """Who encrypts towards the destination (``tls.mode``). AUTO is the mesh's own choice: HBONE where spoken."""

    AUTO = "AUTO"
    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


@dataclass(frozen=True, slots=True)
class Warmup:
    """New endpoints get a growing share for ``duration`` seconds, starting at ``minimum_percent``."""

    duration: float
    minimum_percent: float = 10.0
    aggression: float = 1.0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP keepalive of the upstream socket; ``None`` leaves the operating system's value."""

    probes: int | None = None
    time: float | None = None
    interval: float | None = None


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """``connectionPool.tcp``. ``idle_timeout`` ``None`` means never (``0s`` in the document)."""

    max_connections: int | None = None
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT_SECONDS
    keepalive: Keepalive | None = None
    max_connection_duration: float | None = None
    idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """``outlierDetection``. For TCP a failed connect counts as one error of the consecutive kind."""

    consecutive_errors: int = 5
    """0 switches this kind of ejection off."""
    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_percent: int = 10
    min_health_percent: int = 0


@dataclass(frozen=True, slots=True)
class LocalityShare:
    """``distribute``: the percentages that clients in ``origin`` send to each locality (``region/zone/*``)."""

    origin: str
    shares: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LocalityPolicy:
    """``localityLbSetting``: either ``distribute`` or ``failover`` (region to region), and label priorities."""

    enabled: bool = True
    distribute: tuple[LocalityShare, ...] = ()
    failover: tuple[tuple[str, str], ...] = ()
    failover_priority: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """``tls``: file names as written; the socket layer loads them."""

    mode: TlsMode = TlsMode.AUTO
    sni: str = ""
    subject_alt_names: tuple[str, ...] = ()
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """Everything that acts on the TCP connections to one destination."""

    balancing: Balancing = Balancing.LEAST_REQUEST
    hash_source_ip: bool = False
    """RING_HASH and MAGLEV hash the client's address; without this they have nothing to hash and act as RANDOM."""
    table_size: int = DEFAULT_RING_SIZE
    warmup: Warmup | None = None
    pool: PoolLimits = field(default_factory=PoolLimits)
    outlier: OutlierPolicy | None = None
    locality: LocalityPolicy | None = None
    tls: UpstreamTls = field(default_factory=UpstreamTls)
    proxy_protocol: str = ""
    """``V1`` or ``V2``: the header to write in front of the bytes, empty for none."""


DEFAULT_POLICY = TrafficPolicy()
