"""DestinationRule of ``networking.istio.io``, with the traffic policy as far as it acts on TCP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from waypoint.resources.schema import MAX_LIST, Integer, Labels, Lenient, Resource, Text, TextList, Whole


class PortNumber(Resource):
    """``port`` of a port-level setting."""

    number: Integer | None = None


class HashCookie(Resource):
    """``httpCookie``: of no use for raw TCP, but checked."""

    name: Text = ""
    path: Text = ""
    ttl: Text = ""
    attributes: Annotated[tuple[dict[str, Any], ...], Field(max_length=MAX_LIST)] = ()


class RingHash(Resource):
    """``ringHash``."""

    minimum_ring_size: Integer = 0


class Maglev(Resource):
    """``maglev``."""

    table_size: Integer = 0


class ConsistentHash(Resource):
    """``consistentHash``."""

    http_header_name: Text = ""
    http_cookie: HashCookie | None = None
    use_source_ip: bool = False
    http_query_parameter_name: Text = ""
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: Integer = 0


class Distribute(Resource):
    """One entry of ``distribute``; ``from`` is a Python keyword."""

    origin: Text = Field(default="", alias="from")
    to: dict[Text, Integer] = Field(default_factory=dict)


class Failover(Resource):
    """One entry of ``failover``."""

    origin: Text = Field(default="", alias="from")
    to: Text = ""


class LocalityLb(Resource):
    """``localityLbSetting``."""

    distribute: Annotated[tuple[Distribute, ...], Field(max_length=MAX_LIST)] = ()
    failover: Annotated[tuple[Failover, ...], Field(max_length=MAX_LIST)] = ()
    failover_priority: TextList = ()
    enabled: bool = True


class WarmupConfig(Resource):
    """``warmup``."""

    duration: Text = ""
    minimum_percent: float | None = None
    aggression: float | None = None


class LoadBalancer(Resource):
    """``loadBalancer``."""

    simple: (
        Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None
    ) = None
    consistent_hash: ConsistentHash | None = None
    locality_lb_setting: LocalityLb | None = None
    zone_aware_lb_setting: dict[str, Any] | None = None
    warmup_duration_secs: Text = ""
    warmup: WarmupConfig | None = None


class TcpKeepalive(Resource):
    """``tcpKeepalive``."""

    probes: Integer | None = None
    time: Text = ""
    interval: Text = ""


class TcpSettings(Resource):
    """``connectionPool.tcp``."""

    max_connections: Integer = 0
    connect_timeout: Text = ""
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Text = ""
    idle_timeout: Text = ""


class ConnectionPool(Resource):
    """``connectionPool``; ``http`` has no meaning here."""

    tcp: TcpSettings | None = None
    http: dict[str, Any] | None = None


class OutlierDetection(Resource):
    """``outlierDetection``."""

    consecutive_errors: Integer | None = None
    consecutive_5xx_errors: Integer | None = Field(default=None, alias="consecutive5xxErrors")
    consecutive_gateway_errors: Integer | None = None
    consecutive_local_origin_failures: Integer | None = None
    split_external_local_origin_errors: bool = False
    interval: Text = ""
    base_ejection_time: Text = ""
    max_ejection_percent: Integer | None = None
    min_health_percent: Integer | None = None


class ClientTls(Resource):
    """``tls`` towards the destination."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: Text = ""
    private_key: Text = ""
    ca_certificates: Text = ""
    credential_name: Text = ""
    subject_alt_names: TextList = ()
    sni: Text = ""
    insecure_skip_verify: bool = False
    ca_crl: Text = ""


class Tunnel(Resource):
    """``tunnel``: wraps connections in CONNECT at the destination; diagnosed, not applied."""

    protocol: Text = ""
    target_host: Text = ""
    target_port: Integer = 0


class ProxyProtocol(Resource):
    """``proxyProtocol``."""

    version: Text = "V1"


class PortPolicy(Resource):
    """One entry of ``portLevelSettings``."""

    port: PortNumber | None = None
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


class TrafficPolicySpec(Resource):
    """``trafficPolicy`` of a host or of a subset."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: Annotated[tuple[PortPolicy, ...], Field(max_length=MAX_LIST)] = ()
    tunnel: Tunnel | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: dict[str, Any] | None = None


class SubsetSpec(Resource):
    """One entry of ``subsets``."""

    name: Text = ""
    labels: Labels = Field(default_factory=dict)
    traffic_policy: TrafficPolicySpec | None = None


class WorkloadSelector(Lenient):
    """``workloadSelector``."""

    match_labels: Labels = Field(default_factory=dict)


class DestinationRuleSpec(Resource):
    """``spec``."""

    host: Text = ""
    traffic_policy: TrafficPolicySpec | None = None
    subsets: Annotated[tuple[SubsetSpec, ...], Field(max_length=MAX_LIST)] = ()
    export_to: TextList = ()
    workload_selector: WorkloadSelector | None = None


class DestinationRuleResource(Whole):
    """A DestinationRule document."""

    spec: DestinationRuleSpec = DestinationRuleSpec()
