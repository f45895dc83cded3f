"""DestinationRule traffic policies: the written parts as values, and their resolution for one subset and port.

Merging follows Istio's ``MergeSubsetTrafficPolicy``: a part that a subset sets replaces the host's part; an entry of
``portLevelSettings`` replaces every part at once, and what it leaves out returns to the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from waypoint.resources.destination_rule import (
    ClientTls,
    ConnectionPool,
    LoadBalancer,
    LocalityLb,
    OutlierDetection,
    PortPolicy,
    TrafficPolicySpec,
)
from waypoint.resources.schema import parse_duration
from ztun.traffic.policy import (
    DEFAULT_CONNECT_TIMEOUT_SECONDS,
    DEFAULT_IDLE_TIMEOUT_SECONDS,
    DEFAULT_MAGLEV_SIZE,
    DEFAULT_POLICY,
    DEFAULT_RING_SIZE,
    Balancing,
    Keepalive,
    LocalityPolicy,
    LocalityShare,
    OutlierPolicy,
    PoolLimits,
    TlsMode,
    TrafficPolicy,
    UpstreamTls,
    Warmup,
)

MAX_RING_SIZE = 65_536  # Istio accepts more; a ring of this size spreads 500 endpoints within 2 percent
MAX_MAGLEV_SIZE = 5_000_011  # Envoy's limit
_SIMPLE = {"LEAST_CONN": Balancing.LEAST_REQUEST, "UNSPECIFIED": Balancing.LEAST_REQUEST}


@dataclass(frozen=True, slots=True)
class BalancingSpec:
    """``loadBalancer`` as values."""

    balancing: Balancing = Balancing.LEAST_REQUEST
    hash_source_ip: bool = False
    table_size: int = DEFAULT_RING_SIZE
    warmup: Warmup | None = None
    locality: LocalityPolicy | None = None


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A ``trafficPolicy`` as written: ``None`` for every part that is absent."""

    balancing: BalancingSpec | None = None
    pool: PoolLimits | None = None
    outlier: OutlierPolicy | None = None
    tls: UpstreamTls | None = None
    proxy_protocol: str | None = None
    ports: Mapping[int, PolicySpec] = field(default_factory=lambda: MappingProxyType({}))


def seconds(text: str, default: float | None) -> float | None:
    """A duration in seconds; the default when it is absent or not a duration."""
    value = parse_duration(text) if text else None
    return default if value is None else float(value)


def policy_spec(spec: TrafficPolicySpec) -> PolicySpec:
    """A written policy as values. Nonsense (reported by the analysis) becomes the default."""
    ports = {
        entry.port.number: _part(entry)
        for entry in reversed(spec.port_level_settings)
        if entry.port is not None and entry.port.number is not None
    }
    part = _part(spec)
    proxy = spec.proxy_protocol.version if spec.proxy_protocol else None
    return PolicySpec(part.balancing, part.pool, part.outlier, part.tls, proxy, MappingProxyType(ports))


def _part(spec: TrafficPolicySpec | PortPolicy) -> PolicySpec:
    return PolicySpec(
        _balancing(spec.load_balancer) if spec.load_balancer else None,
        _pool(spec.connection_pool) if spec.connection_pool else None,
        _outlier(spec.outlier_detection) if spec.outlier_detection else None,
        _tls(spec.tls) if spec.tls else None,
    )


def _balancing(spec: LoadBalancer) -> BalancingSpec:
    locality = _locality(spec.locality_lb_setting) if spec.locality_lb_setting else None
    chosen = spec.consistent_hash
    if chosen is not None:
        if chosen.maglev is not None:
            size = chosen.maglev.table_size or DEFAULT_MAGLEV_SIZE
            size = min(max(size, 1), MAX_MAGLEV_SIZE)
            return BalancingSpec(Balancing.MAGLEV, chosen.use_source_ip, size, None, locality)
        written = chosen.ring_hash.minimum_ring_size if chosen.ring_hash else chosen.minimum_ring_size
        size = min(max(written or DEFAULT_RING_SIZE, 1), MAX_RING_SIZE)
        return BalancingSpec(Balancing.RING_HASH, chosen.use_source_ip, size, None, locality)
    simple = spec.simple or "UNSPECIFIED"
    balancing = _SIMPLE.get(simple) or Balancing(simple)
    return BalancingSpec(balancing, warmup=_warmup(spec), locality=locality)


def _warmup(spec: LoadBalancer) -> Warmup | None:
    if spec.warmup is not None:
        duration = seconds(spec.warmup.duration, None)
        if not duration:
            return None
        percent, aggression = spec.warmup.minimum_percent, spec.warmup.aggression
        return Warmup(
            duration,
            min(max(percent, 0.0), 100.0) if percent is not None else 10.0,
            max(aggression, 1.0) if aggression is not None else 1.0,
        )
    duration = seconds(spec.warmup_duration_secs, None)
    return Warmup(duration) if duration else None


def _locality(spec: LocalityLb) -> LocalityPolicy:
    return LocalityPolicy(
        spec.enabled,
        tuple(LocalityShare(entry.origin, tuple(entry.to.items())) for entry in spec.distribute),
        tuple((entry.origin, entry.to) for entry in spec.failover),
        tuple(spec.failover_priority),
    )


def _pool(spec: ConnectionPool) -> PoolLimits | None:
    tcp = spec.tcp
    if tcp is None:
        return None
    keepalive = None
    if tcp.tcp_keepalive is not None:
        alive = tcp.tcp_keepalive
        keepalive = Keepalive(alive.probes, seconds(alive.time, None), seconds(alive.interval, None))
    return PoolLimits(
        tcp.max_connections if tcp.max_connections > 0 else None,
        seconds(tcp.connect_timeout, None) or DEFAULT_CONNECT_TIMEOUT_SECONDS,
        keepalive,
        seconds(tcp.max_connection_duration, None) or None,
        seconds(tcp.idle_timeout, DEFAULT_IDLE_TIMEOUT_SECONDS) or None,
    )


def _outlier(spec: OutlierDetection) -> OutlierPolicy:
    default = OutlierPolicy()
    consecutive = spec.consecutive_5xx_errors
    if spec.split_external_local_origin_errors and spec.consecutive_local_origin_failures is not None:
        consecutive = spec.consecutive_local_origin_failures
    elif consecutive is None:
        gateway, old = spec.consecutive_gateway_errors, spec.consecutive_errors
        consecutive = gateway if gateway is not None else old
    return OutlierPolicy(
        max(consecutive, 0) if consecutive is not None else default.consecutive_errors,
        seconds(spec.interval, None) or default.interval,
        seconds(spec.base_ejection_time, None) or default.base_ejection_time,
        _percent(spec.max_ejection_percent, default.max_ejection_percent),
        _percent(spec.min_health_percent, default.min_health_percent),
    )


def _percent(value: int | None, default: int) -> int:
    return default if value is None else min(max(value, 0), 100)


def _tls(spec: ClientTls) -> UpstreamTls:
    return UpstreamTls(
        TlsMode(spec.mode),
        spec.sni,
        tuple(spec.subject_alt_names),
        spec.client_certificate,
        spec.private_key,
        spec.ca_certificates,
        spec.credential_name,
        spec.insecure_skip_verify,
    )


def resolve(base: PolicySpec | None, subset: PolicySpec | None, port: int) -> TrafficPolicy:
    """The policy for connections to ``port`` of a host, or of a subset of it."""
    if base is None and subset is None:
        return DEFAULT_POLICY
    balancing = pool = outlier = tls = proxy = None
    for spec in (base, subset):
        if spec is None:
            continue
        balancing = spec.balancing or balancing
        pool = spec.pool or pool
        outlier = spec.outlier or outlier
        tls = spec.tls or tls
        proxy = spec.proxy_protocol or proxy
        at_port = spec.ports.get(port)
        if at_port is not None:
            balancing, pool = at_port.balancing, at_port.pool
            outlier, tls = at_port.outlier, at_port.tls
    chosen = balancing or BalancingSpec()
    return TrafficPolicy(
        chosen.balancing,
        chosen.hash_source_ip,
        chosen.table_size,
        chosen.warmup,
        pool or PoolLimits(),
        outlier,
        chosen.locality,
        tls or UpstreamTls(),
        proxy or "",
    )
