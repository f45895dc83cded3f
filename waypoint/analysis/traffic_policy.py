"""``trafficPolicy`` of a DestinationRule, on the host, a subset or a port."""

from __future__ import annotations

from waypoint.analysis.balancing import check_load_balancer
from waypoint.analysis.report import Report
from waypoint.analysis.syntax import duration_error, is_host_or_ip
from waypoint.resources.destination_rule import (
    ClientTls,
    ConnectionPool,
    OutlierDetection,
    PortPolicy,
    TrafficPolicySpec,
)
from ztun.mesh.document import Document, FieldPath

PARTS = ("load_balancer", "connection_pool", "outlier_detection", "tls")
MAX_PORT = 65_535


def check_policy(document: Document, path: FieldPath, spec: TrafficPolicySpec, report: Report) -> None:
    """All findings about one trafficPolicy."""
    if not spec.has(*PARTS, "port_level_settings", "tunnel", "proxy_protocol", "retry_budget"):
        report.add(document, "TP-EMPTY", path, "trafficPolicy is empty", "set something or remove it")
    _parts(document, path, spec, report)
    for index, entry in enumerate(spec.port_level_settings):
        at = (*path, "portLevelSettings", index)
        if entry.port is None or entry.port.number is None:
            report.add(document, "TP-PORT-MISSING", at, "there is no port", "add port.number")
        elif not 0 < entry.port.number <= MAX_PORT:
            report.add(document, "TP-PORT-MISSING", (*at, "port"), f"{entry.port.number} is no port")
        if not entry.has(*PARTS):
            report.add(
                document, "TP-PORT-MISSING", at, "the entry sets nothing", "set something or remove it"
            )
        _parts(document, at, entry, report)
    _wrapping(document, path, spec, report)


def _parts(document: Document, path: FieldPath, spec: TrafficPolicySpec | PortPolicy, report: Report) -> None:
    if spec.load_balancer is not None:
        outlier = spec.outlier_detection is not None
        at = (*path, "loadBalancer")
        check_load_balancer(document, at, spec.load_balancer, report, outlier=outlier)
    if spec.connection_pool is not None:
        _pool(document, (*path, "connectionPool"), spec.connection_pool, report)
    if spec.outlier_detection is not None:
        _outlier(document, (*path, "outlierDetection"), spec.outlier_detection, report)
    if spec.tls is not None:
        _tls(document, (*path, "tls"), spec.tls, report)


def _wrapping(document: Document, path: FieldPath, spec: TrafficPolicySpec, report: Report) -> None:
    tunnel, proxy = spec.tunnel, spec.proxy_protocol
    if tunnel is not None and proxy is not None:
        message = "tunnel and proxyProtocol cannot be combined"
        report.add(document, "TP-TUNNEL-PROXY", path, message, "keep one of the two")
    if tunnel is not None:
        at = (*path, "tunnel")
        if tunnel.protocol.upper() not in ("", "CONNECT", "POST"):
            report.add(document, "TP-TUNNEL-PROXY", (*at, "protocol"), f"{tunnel.protocol!r} is unknown")
        if not is_host_or_ip(tunnel.target_host):
            report.add(document, "TP-TUNNEL-PROXY", (*at, "targetHost"), f"{tunnel.target_host!r} is no host")
        if not 0 < tunnel.target_port <= MAX_PORT:
            report.add(document, "TP-TUNNEL-PROXY", (*at, "targetPort"), f"{tunnel.target_port} is no port")
        report.add(document, "TP-NO-EFFECT", at, "tunnel is not applied; connections go out as they are")
    if proxy is not None and proxy.version not in ("V1", "V2"):
        message = f"{proxy.version!r} is no version"
        report.add(document, "TP-TUNNEL-PROXY", (*path, "proxyProtocol"), message, "use V1 or V2")


def _duration(document: Document, path: FieldPath, text: str, report: Report, *, zero: bool = False) -> None:
    error = duration_error(text, zero=zero) if text else ""
    if error:
        report.add(document, "DURATION", path, error)


def _pool(document: Document, path: FieldPath, spec: ConnectionPool, report: Report) -> None:
    if spec.tcp is None and spec.http is None:
        report.add(document, "CP-EMPTY", path, "connectionPool is empty", "set tcp or remove it")
    if spec.http:
        for name, value in spec.http.items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 0:
                report.add(document, "CP-NEGATIVE", (*path, "http", name), f"{value} is below 0")
        report.add(document, "TP-NO-EFFECT", (*path, "http"), "http has no effect on raw TCP")
    tcp = spec.tcp
    if tcp is None:
        return
    at = (*path, "tcp")
    if tcp.max_connections < 0:
        message = f"maxConnections {tcp.max_connections} is below 0"
        report.add(document, "CP-NEGATIVE", (*at, "maxConnections"), message)
    _duration(document, (*at, "connectTimeout"), tcp.connect_timeout, report)
    _duration(document, (*at, "maxConnectionDuration"), tcp.max_connection_duration, report)
    _duration(document, (*at, "idleTimeout"), tcp.idle_timeout, report, zero=True)
    alive = tcp.tcp_keepalive
    if alive is not None:
        if alive.probes is not None and alive.probes < 0:
            report.add(document, "CP-NEGATIVE", (*at, "tcpKeepalive", "probes"), "probes is below 0")
        _duration(document, (*at, "tcpKeepalive", "time"), alive.time, report)
        _duration(document, (*at, "tcpKeepalive", "interval"), alive.interval, report)


def _outlier(document: Document, path: FieldPath, spec: OutlierDetection, report: Report) -> None:
    _duration(document, (*path, "interval"), spec.interval, report)
    _duration(document, (*path, "baseEjectionTime"), spec.base_ejection_time, report)
    for name, value in (
        ("maxEjectionPercent", spec.max_ejection_percent),
        ("minHealthPercent", spec.min_health_percent),
    ):
        if value is not None and not 0 <= value <= 100:
            report.add(document, "OD-PERCENT", (*path, name), f"{value} is outside 0 to 100")
    if spec.consecutive_local_origin_failures is not None and not spec.split_external_local_origin_errors:
        message = "consecutiveLocalOriginFailures has no effect alone"
        hint = "set splitExternalLocalOriginErrors: true"
        report.add(document, "OD-SPLIT", (*path, "consecutiveLocalOriginFailures"), message, hint)
    if spec.consecutive_errors is not None:
        message = "consecutiveErrors is deprecated"
        hint = "use consecutive5xxErrors"
        report.add(document, "OD-DEPRECATED", (*path, "consecutiveErrors"), message, hint)


def _tls(document: Document, path: FieldPath, spec: ClientTls, report: Report) -> None:
    files = bool(spec.client_certificate or spec.private_key or spec.ca_certificates)
    if spec.credential_name and files:
        message = "credentialName and file names cannot be combined"
        report.add(document, "TLS-CLIENT-SOURCE", path, message, "keep one of the two")
    own = bool(spec.client_certificate or spec.private_key)
    if spec.mode == "MUTUAL" and not spec.credential_name:
        if not (spec.client_certificate and spec.private_key):
            message = "mode MUTUAL needs clientCertificate and privateKey, or credentialName"
            report.add(document, "TLS-CLIENT-CERTIFICATE", path, message)
    elif spec.mode == "ISTIO_MUTUAL" and (files or spec.credential_name or (spec.sni and own)):
        message = "mode ISTIO_MUTUAL uses the workload's own certificate"
        report.add(document, "TLS-CLIENT-UNEXPECTED", path, message, "remove the certificate fields")
    elif spec.mode == "SIMPLE" and own:
        message = "mode SIMPLE presents no certificate"
        hint = "remove clientCertificate and privateKey, or use MUTUAL"
        report.add(document, "TLS-CLIENT-UNEXPECTED", path, message, hint)
    if spec.insecure_skip_verify and (spec.ca_certificates or spec.subject_alt_names):
        message = "insecureSkipVerify switches off what caCertificates and subjectAltNames ask for"
        report.add(document, "TLS-CLIENT-VERIFY", path, message, "keep one of the two")
    verified = spec.ca_certificates or spec.credential_name or spec.insecure_skip_verify
    if spec.mode in ("SIMPLE", "MUTUAL") and not verified:
        code = "IST0129" if "portLevelSettings" in path else "IST0128"
        message = f"mode {spec.mode} without caCertificates: the server's certificate is not verified"
        report.add(document, code, path, message, "set caCertificates or credentialName")
