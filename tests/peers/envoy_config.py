"""Static Envoy bootstraps for both ends of a tunnel, as plain values; nothing is started here.

A bootstrap may hold several of the parts of ``envoy_parts``.

What Envoy 1.40 does with the ends of a tunnelled stream, measured: client-first half-close works. As a
terminator it resets the stream when the application ends first, and what its codec had not yet sent is lost; a
reset stream becomes FIN. As a client it does the same unless ``half_close`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certs.spiffe import SpiffeId
from tests.peers.credentials import Credentials
from tests.peers.envoy_parts import Address, Onward, Part, PlainEntry, Terminator, TunnelEntry

_UNLIMITED = 1_000_000  # above any connection count of a test, so that Envoy's circuit breakers never act
_HALF_CLOSE = "envoy.reloadable_features.allow_multiplexed_upstream_half_close"
_TYPE = "type.googleapis.com/"
_HTTP = _TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

TUNNEL_LOG = (
    "%START_TIME% access connection complete src.addr=%DOWNSTREAM_REMOTE_ADDRESS% dst.addr=%UPSTREAM_HOST% "
    "direction=outbound bytes_sent=%BYTES_SENT% bytes_recv=%BYTES_RECEIVED% duration=%DURATION%ms "
    "flags=%RESPONSE_FLAGS%\n"
)
CONNECT_LOG = {
    "method": "%REQ(:METHOD)%",
    "authority": "%REQ(:AUTHORITY)%",
    "scheme": "%REQ(:SCHEME)%",
    "path": "%REQ(:PATH)%",
    "baggage": "%REQ(BAGGAGE)%",
    "forwarded": "%REQ(FORWARDED)%",
    "traceparent": "%REQ(TRACEPARENT)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "own": "%DOWNSTREAM_LOCAL_URI_SAN%",
    "tls": "%DOWNSTREAM_TLS_VERSION%",
    "sni": "%REQUESTED_SERVER_NAME%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "sent": "%BYTES_SENT%",
    "received": "%BYTES_RECEIVED%",
    "connection": "%CONNECTION_ID%",
    "upstream": "%UPSTREAM_HOST%",
}
"""Keys of the JSON records that a :class:`Terminator` logs, one per CONNECT stream."""


def bootstrap(parts: Sequence[Part], *, half_close: bool = False) -> dict[str, Any]:
    """The whole bootstrap, ready to be written as JSON. The admin interface takes a free port on loopback.

    ``half_close`` lets the client side go on sending after the peer has ended its direction. It must not be
    set for a terminator: there the same switch makes Envoy drop what the application sent last (envoy#47378).
    """
    clusters: dict[str, dict[str, Any]] = {}
    listeners = []
    for part in parts:
        if isinstance(part, TunnelEntry):
            listeners.append(_entry_listener(part))
            clusters[part.cluster] = _tunnel_cluster(
                part.cluster, part.peer, part.credentials, part.expected, part.streams_per_tunnel
            )
        elif isinstance(part, Onward):
            listeners.append(_onward_listener(part))
            clusters[part.cluster] = _tunnel_cluster(part.cluster, part.peer, part.credentials, part.expected)
        elif isinstance(part, PlainEntry):
            listeners.append(_tcp_listener(part, {}))
            clusters[part.cluster] = _plain_cluster(part)
        else:
            listeners.append(_terminator_listener(part))
            for address in part.routes.values():
                clusters[_application(address)] = _cluster(_application(address), address)
    return {
        "admin": {"address": _address(("127.0.0.1", 0))},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {_HALF_CLOSE: half_close}}]},
        "static_resources": {"listeners": listeners, "clusters": list(clusters.values())},
    }


def _address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _application(address: Address) -> str:
    return f"application {address[0]}:{address[1]}"


def _cluster(name: str, address: Address, **more: Any) -> dict[str, Any]:
    limits = [
        {
            "priority": priority,
            "max_connections": _UNLIMITED,
            "max_pending_requests": _UNLIMITED,
            "max_requests": _UNLIMITED,
            "max_retries": 3,
        }
        for priority in ("DEFAULT", "HIGH")
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": limits},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
        **more,
    }


def _tls(credentials: Credentials, expected: Sequence[SpiffeId]) -> dict[str, Any]:
    validation: dict[str, Any] = {"trusted_ca": {"filename": str(credentials.roots)}}
    if expected:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "URI", "matcher": {"exact": str(identity)}} for identity in expected
        ]
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(credentials.chain)},
                "private_key": {"filename": str(credentials.key)},
            }
        ],
        "validation_context": validation,
    }


def _tunnel_cluster(
    name: str,
    peer: Address,
    credentials: Credentials,
    expected: SpiffeId,
    streams_per_tunnel: int | None = None,
) -> dict[str, Any]:
    http2: dict[str, Any] = {}
    if streams_per_tunnel is not None:
        http2["max_concurrent_streams"] = streams_per_tunnel
    return _cluster(
        name,
        peer,
        transport_socket={
            "name": "tls",
            "typed_config": {
                "@type": _TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": _tls(credentials, [expected]),
                "max_session_keys": 0,
            },
        },
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP,
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        },
    )


def _plain_cluster(entry: PlainEntry) -> dict[str, Any]:
    if not entry.server_name:
        return _cluster(entry.cluster, entry.target)
    context: dict[str, Any] = {
        "validation_context": {"trusted_ca": {"filename": str(entry.authority)}},
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
    }
    if entry.certificate is not None:
        files = {
            "certificate_chain": {"filename": str(entry.certificate)},
            "private_key": {"filename": str(entry.key)},
        }
        context["tls_certificates"] = [files]
    typed = {
        "@type": _TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": entry.server_name,
        "common_tls_context": context,
    }
    return _cluster(entry.cluster, entry.target, transport_socket={"name": "tls", "typed_config": typed})


def _entry_listener(entry: TunnelEntry) -> dict[str, Any]:
    more: dict[str, Any] = {
        "tunneling_config": {
            "hostname": entry.authority,
            "headers_to_add": [
                {"header": {"key": key, "value": value}} for key, value in entry.headers.items()
            ],
        },
    }
    if entry.access_log is not None:
        text = {"text_format_source": {"inline_string": TUNNEL_LOG}}
        more["access_log"] = [_file_log(entry.access_log, text)]
    return _tcp_listener(entry, more)


def _tcp_listener(entry: TunnelEntry | PlainEntry, more: Mapping[str, Any]) -> dict[str, Any]:
    proxy = {
        "@type": _TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": entry.name,
        "cluster": entry.cluster,
        "idle_timeout": "0s",
        **more,
    }
    return {
        "name": entry.name,
        "address": _address(entry.listen),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
    }


def _terminator_listener(part: Terminator) -> dict[str, Any]:
    common: dict[str, Any] = {}
    if part.requests_per_connection is not None:
        common["max_requests_per_connection"] = part.requests_per_connection
    http2: dict[str, Any] = {}
    if part.max_concurrent_streams is not None:
        http2["max_concurrent_streams"] = part.max_concurrent_streams
    hosts = [
        _virtual_host(authority, {"cluster": _application(address)}, terminate=True)
        for authority, address in part.routes.items()
    ]
    return _connect_listener(part, hosts, part.expected, common, http2)


def _onward_listener(part: Onward) -> dict[str, Any]:
    hosts = [
        _virtual_host(authority, {"cluster": part.cluster, "host_rewrite_literal": target}, terminate=False)
        for authority, target in part.routes.items()
    ]
    return _connect_listener(part, hosts, part.clients, {}, {})


def _connect_listener(
    part: Terminator | Onward,
    hosts: Sequence[dict[str, Any]],
    expected: Sequence[SpiffeId],
    common: Mapping[str, Any],
    http2: Mapping[str, Any],
) -> dict[str, Any]:
    manager: dict[str, Any] = {
        "@type": _TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": part.name,
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": common,
        "http2_protocol_options": {"allow_connect": True, **http2},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"name": part.name, "virtual_hosts": list(hosts)},
        "http_filters": [
            *([_rbac_filter(part.allowed)] if part.allowed else []),
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "envoy.extensions.filters.http.router.v3.Router"},
            },
        ],
    }
    if part.access_log is not None:
        manager["access_log"] = [_file_log(part.access_log, {"json_format": CONNECT_LOG})]
    tls = {
        "@type": _TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "common_tls_context": _tls(part.credentials, expected),
    }
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    return {
        "name": part.name,
        "address": _address(part.listen),
        "enable_reuse_port": False,  # with it a second listener on the address would silently take its share
        "filter_chains": [chain],
    }


def _rbac_filter(allowed: Sequence[SpiffeId]) -> dict[str, Any]:
    principals = [{"authenticated": {"principal_name": {"exact": str(identity)}}} for identity in allowed]
    policy = {"permissions": [{"any": True}], "principals": principals}
    return {
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": _TYPE + "envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"clients": policy}},
        },
    }


def _virtual_host(authority: str, route: Mapping[str, Any], *, terminate: bool) -> dict[str, Any]:
    upgrade: dict[str, Any] = {"upgrade_type": "CONNECT"}
    if terminate:
        upgrade["connect_config"] = {}
    return {
        "name": authority,
        "domains": [authority],
        "routes": [
            {
                "match": {"connect_matcher": {}},
                "route": {**route, "timeout": "0s", "upgrade_configs": [upgrade]},
            }
        ],
    }


def _file_log(path: Path, log_format: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "file",
        "typed_config": {
            "@type": _TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": log_format,
        },
    }
