"""What a proxy is told: command line and environment into one immutable value.

Environment variables have ztunnel's names where ztunnel has them; ours begin with ``ZTUN_``. A bad value is an error
that names the variable. This is the only place that reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

from certs.authority import LEAF_LIFETIME, MAX_LEAF_LIFETIME, MIN_ASKED_LIFETIME
from certs.spiffe import DEFAULT_TRUST_DOMAIN
from ztun.dns.settings import DnsSettings, parse_dns_address
from ztun.errors import ConfigError
from ztun.hbone.guard import GuardLimits
from ztun.hbone.settings import TunnelSettings
from ztun.mesh.address import AddressError, parse_host_port, parse_port
from ztun.mesh.model import HBONE_PORT, canonical_ip
from ztun.net.dial import SocketOptions
from ztun.net.pool import PoolLimits
from ztun.net.tunnel import TunnelTimeouts
from ztun.telemetry.levels import parse_directives
from ztun.zds.settings import INPOD_MARK, InpodSettings, ProxyPod

T = TypeVar("T")

OUTBOUND_PORT = 15001
INBOUND_PLAINTEXT_PORT = 15006
SOCKS5_PORT = 15080
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Forward:
    """A local port that enters the mesh as a workload: ``[IP:]PORT=HOST:PORT@NS/WORKLOAD``."""

    listen_ip: str
    listen_port: int
    host: str
    port: int
    namespace: str
    workload: str


@dataclass(frozen=True, slots=True)
class ConnectionTimeouts:
    """Times in seconds; 0 switches a limit off."""

    source_workload: float = 5.0
    """How long a connection of a pod that the mesh does not know yet may wait for it."""
    half_closed: float = 45.0
    """Without progress, after one side has ended. Below the 60 s after which conntrack forgets such a connection."""
    idle: float = 0.0
    """Without a byte in either direction; off, as a node proxy must not cut what TCP would keep."""
    socks5: float = 10.0
    """For the SOCKS5 negotiation of a client."""
    client_hello: float = 5.0
    """For a TLS client to say which server it wants, where routes depend on it; 0 looks only at what is there."""


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Everything a node proxy is told. ``drain_deadline`` is in seconds."""

    config_paths: tuple[Path, ...]
    node: str
    ca: str
    mode: Literal["ambient", "sidecar"] = "ambient"
    engine: str = ""
    workload: str = ""
    forwards: tuple[Forward, ...] = ()
    namespace: str = "default"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    network: str = ""
    cluster_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    ca_roots: Path | None = None
    """What the certificate of a remote CA is verified with (PEM)."""
    ca_token: Path | None = None
    """A bearer token for a remote CA."""
    ca_certificate: Path | None = None
    """Directory with the certificate that this proxy shows to a remote CA."""
    certificate_lifetime: timedelta = LEAF_LIFETIME
    """Asked of the CA; certificates that come as files have the one they have."""
    admin_port: int = 15000
    metrics_port: int = 15020
    readiness_port: int = 15021
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    access_log: Literal["text", "json", "none"] = "text"
    open_records: bool = False
    capture: bool = False
    inpod: InpodSettings | None = None
    """In-pod mode, if that is on."""
    dns: DnsSettings | None = None
    """The DNS proxy of captured pods, if that is on."""
    ipv6: bool = True
    """Whether wildcard listeners take IPv6 where there is any, and names have IPv6 addresses."""
    hbone_port: int = HBONE_PORT
    """Where the pods' HBONE listeners are. Peers dial 15008 all the same: something in between redirects it."""
    socks5: bool = False
    response_baggage: bool = True
    registry_only: bool = False
    """In sidecar mode: close connections to addresses that the mesh does not know, instead of passing them on."""
    keep_source: bool | None = None
    """Whether applications see the client's address: refuse connections where that cannot be (True), never try
    (False), or warn where it cannot be (None)."""
    pod_connections: int | None = None
    """In in-pod mode: how many connections one pod may have. By default half of the descriptors are enough for them."""
    drain_deadline: float = 5.0
    timeouts: ConnectionTimeouts = field(default_factory=ConnectionTimeouts)
    tunnel_timeouts: TunnelTimeouts = field(default_factory=TunnelTimeouts)
    sockets: SocketOptions = field(default_factory=SocketOptions)
    pool: PoolLimits = field(default_factory=PoolLimits)
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    guard: GuardLimits = field(default_factory=GuardLimits)


def parse_forward(text: str) -> Forward:
    """Read ``[IP:]PORT=HOST:PORT@NS/WORKLOAD``; raises :class:`ConfigError` that says what is missing."""
    listen, equals, rest = text.partition("=")
    target, at, who = rest.rpartition("@")
    namespace, slash, workload = who.partition("/")
    if not (equals and at and slash and namespace and workload) or "/" in workload:
        raise ConfigError(
            "bad_forward",
            f"--forward {text!r}: expected [IP:]PORT=HOST:PORT@NAMESPACE/WORKLOAD",
            hint=_FORWARD_HINT,
        )
    try:
        ip, _, port = listen.rpartition(":")
        listen_ip = canonical_ip(ip.removeprefix("[").removesuffix("]")) if ip else "127.0.0.1"
        listen_port = parse_port(port)
        destination = parse_host_port(target)
    except (AddressError, ValueError) as error:
        raise ConfigError("bad_forward", f"--forward {text!r}: {error}", hint=_FORWARD_HINT) from error
    return Forward(listen_ip, listen_port, destination.host, destination.port, namespace, workload)


_FORWARD_HINT = "for example 127.0.0.1:9000=echo-server.default.svc.cluster.local:19000@default/telnet-client"


def parse_duration(text: str) -> float:
    """Seconds of ``10s``, ``250ms``, ``5m``, ``24h``, or of several in a row; raises ``ValueError``."""
    total, position = 0.0, 0
    for part in _DURATION.finditer(text):
        if part.start() != position:
            break
        total += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    if not text or position != len(text):
        raise ValueError("expected a duration such as 10s, 5m or 24h")
    return total


def settings_from(
    environment: Mapping[str, str] | None = None,
    *,
    config_paths: tuple[Path, ...],
    node: str,
    ca: str,
    mode: Literal["ambient", "sidecar"] = "ambient",
    engine: str = "",
    workload: str = "",
    forwards: tuple[str, ...] = (),
    namespace: str = "default",
    trust_domain: str = DEFAULT_TRUST_DOMAIN,
    admin_port: int = 15000,
    metrics_port: int = 15020,
    readiness_port: int = 15021,
    log_format: Literal["text", "json"] | None = None,
    log_level: str | None = None,
    access_log: Literal["text", "json", "none"] | None = None,
) -> ProxySettings:
    """Join the command line with the environment (``os.environ`` unless given); the command line wins.

    Raises :class:`ConfigError` naming the option or the variable.
    """
    env = _Environment(os.environ if environment is None else environment)
    if mode == "sidecar" and not workload:
        raise ConfigError(
            "workload_required",
            "--mode sidecar needs --workload NAMESPACE/NAME",
            hint="name the pod whose proxy this is",
        )
    chosen_format, chosen_level = log_choices(log_format, log_level, environment)
    inpod, dedicated = _proxy_mode(env)
    if inpod is not None and mode == "sidecar":
        raise ConfigError(
            "sidecar_inpod",
            "--mode sidecar serves one workload, in-pod mode those that an agent names",
            hint="unset INPOD_ENABLED and PROXY_MODE, or leave --mode away",
        )
    pool, sockets, tunnel = PoolLimits(), SocketOptions(), TunnelSettings()
    stream_window = env.integer("HTTP2_STREAM_WINDOW_SIZE", tunnel.stream_window)
    return ProxySettings(
        config_paths=config_paths,
        node=node,
        ca=ca,
        mode=mode,
        engine=engine or ("sidecar" if mode == "sidecar" else ""),
        workload=workload,
        forwards=tuple(parse_forward(text) for text in forwards),
        namespace=namespace,
        trust_domain=trust_domain,
        network=env.read("NETWORK", "", str),
        cluster_domain=env.read("CLUSTER_DOMAIN", "cluster.local", str),
        cluster_id=env.read("CLUSTER_ID", "Kubernetes", str),
        ca_roots=env.read("CA_ROOT_CA", None, Path),
        ca_token=env.read("AUTH_TOKEN", None, Path),
        ca_certificate=env.read("ZTUN_CA_CERTIFICATE", None, Path),
        certificate_lifetime=env.read("SECRET_TTL", LEAF_LIFETIME, _certificate_lifetime),
        admin_port=admin_port,
        metrics_port=metrics_port,
        readiness_port=readiness_port,
        log_format=chosen_format,
        log_level=chosen_level,
        access_log=access_log if access_log is not None else chosen_format,
        open_records=env.flag("ZTUN_ACCESS_LOG_OPEN", default=False),
        capture=dedicated,
        inpod=inpod,
        dns=_dns(env, captured=dedicated or inpod is not None),
        hbone_port=env.read("ZTUN_HBONE_PORT", HBONE_PORT, parse_port),
        socks5=env.flag("UNSTABLE_ENABLE_SOCKS5", default=False),
        response_baggage=env.flag("ENABLE_RESPONSE_BAGGAGE", default=True),
        registry_only=env.read("ZTUN_OUTBOUND_TRAFFIC_POLICY", False, _registry_only),
        ipv6=env.flag("IPV6_ENABLED", default=True),
        keep_source=env.read("ENABLE_ORIG_SRC", None, _boolean),
        pod_connections=env.read("ZTUN_MAX_CONNECTIONS_PER_POD", None, _positive),
        drain_deadline=_drain_deadline(env),
        timeouts=ConnectionTimeouts(
            half_closed=env.duration("ZTUN_HALF_CLOSED_TIMEOUT", ConnectionTimeouts().half_closed),
            idle=env.duration("ZTUN_IDLE_TIMEOUT", ConnectionTimeouts().idle),
            client_hello=env.duration("ZTUN_CLIENT_HELLO_TIMEOUT", ConnectionTimeouts().client_hello),
        ),
        tunnel_timeouts=TunnelTimeouts(
            connect=env.duration("ZTUN_CONNECT_TIMEOUT", TunnelTimeouts().connect),
            tls_handshake=env.duration("ZTUN_TLS_HANDSHAKE_TIMEOUT", TunnelTimeouts().tls_handshake),
            h2_preface=env.duration("ZTUN_H2_PREFACE_TIMEOUT", TunnelTimeouts().h2_preface),
            connect_response=env.duration("ZTUN_CONNECT_RESPONSE_TIMEOUT", TunnelTimeouts().connect_response),
        ),
        sockets=SocketOptions(
            mark=env.read("PACKET_MARK", None if inpod is None else INPOD_MARK, _mark),
            keepalive=env.flag("KEEPALIVE_ENABLED", default=True),
            keepalive_time=int(env.duration("KEEPALIVE_TIME", sockets.keepalive_time)),
            keepalive_interval=int(env.duration("KEEPALIVE_INTERVAL", sockets.keepalive_interval)),
            keepalive_probes=env.integer("KEEPALIVE_RETRIES", sockets.keepalive_probes),
            user_timeout=env.flag("USER_TIMEOUT_ENABLED", default=False),
        ),
        pool=PoolLimits(
            streams_per_tunnel=env.integer("POOL_MAX_STREAMS_PER_CONNECTION", pool.streams_per_tunnel),
            idle_timeout=env.duration("POOL_UNUSED_RELEASE_TIMEOUT", pool.idle_timeout),
        ),
        tunnel=TunnelSettings(
            stream_window=stream_window,
            connection_window=env.integer(
                "HTTP2_CONNECTION_WINDOW_SIZE", max(tunnel.connection_window, stream_window)
            ),
            max_frame_size=env.integer("HTTP2_FRAME_SIZE", tunnel.max_frame_size),
        ),
    )


def log_choices(
    log_format: Literal["text", "json"] | None,
    log_level: str | None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Literal["text", "json"], str]:
    """Form and levels of the log, from the command line or else the environment; raises :class:`ConfigError`."""
    env = _Environment(os.environ if environment is None else environment)
    styles: dict[str, Literal["text", "json"]] = {"plain": "text", "text": "text", "json": "json"}
    chosen = (
        log_format if log_format is not None else env.read("LOG_FORMAT", styles["text"], styles.__getitem__)
    )
    if log_level is not None:
        try:
            parse_directives(log_level)
        except ConfigError as error:
            raise ConfigError(error.code, f"--log-level: {error}", hint=error.hint) from error
        return chosen, log_level
    return chosen, env.read("RUST_LOG", "info", _directives)


def _proxy_mode(env: _Environment) -> tuple[InpodSettings | None, bool]:
    """In-pod mode (``shared`` of ztunnel), and whether the proxy's own namespace is captured (``dedicated``)."""
    proxy_mode = env.read("PROXY_MODE", "", {"shared": "shared", "dedicated": "dedicated"}.__getitem__)
    capture = env.flag("ZTUN_CAPTURE", default=proxy_mode == "dedicated")
    enabled = env.flag("INPOD_ENABLED", default=proxy_mode == "shared")
    if enabled and (capture or proxy_mode == "dedicated"):
        raise ConfigError(
            "two_proxy_modes",
            "INPOD_ENABLED serves other namespaces; ZTUN_CAPTURE and PROXY_MODE=dedicated its own",
            hint="keep one of them",
        )
    if not enabled:
        return None, capture
    pod = [env.read(name, "", str) for name in ("POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT")]
    trust_domain = env.read("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN, str)
    return InpodSettings(
        uds=env.read("INPOD_UDS", InpodSettings().uds, Path),
        port_reuse=env.flag("INPOD_PORT_REUSE", default=True),
        itself=ProxyPod(pod[0], pod[1], pod[2], trust_domain) if all(pod) else None,
    ), capture


def _dns(env: _Environment, *, captured: bool) -> DnsSettings | None:
    """On for captured pods, unless a variable says anything but true."""
    if not captured or env.read("ISTIO_META_DNS_CAPTURE", "true", str) != "true":
        return None
    defaults = DnsSettings()
    ips, port = env.read("ISTIO_META_DNS_PROXY_ADDR", (defaults.ips, defaults.port), parse_dns_address)
    return DnsSettings(
        ips,
        port,
        resolv_conf=env.read("ZTUN_RESOLV_CONF", defaults.resolv_conf, Path),
        preferred_namespace=env.read("PREFERED_SERVICE_NAMESPACE", "", str),
    )


def _mark(text: str) -> int:
    return int(text, 0)


def _drain_deadline(env: _Environment) -> float:
    """ztunnel's rule: the explicit deadline, else the pod's grace period less a margin, else 5 s."""
    explicit = env.read("CONNECTION_TERMINATION_DEADLINE", None, parse_duration)
    if explicit is not None:
        return explicit
    grace = env.read("TERMINATION_GRACE_PERIOD_SECONDS", None, int)
    if grace is None:
        return 5.0
    return float(grace - 5 if grace > 10 else max(0, grace - 1))


class _Environment:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def read(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        text = self._values.get(name)
        if text is None or text == "":
            return default
        try:
            return parse(text)
        except (ValueError, KeyError, ConfigError) as error:
            hint = error.hint if isinstance(error, ConfigError) else ""
            message = f"environment variable {name}={text!r}: {error}"
            raise ConfigError("bad_environment", message, hint=hint) from error

    def flag(self, name: str, *, default: bool) -> bool:
        return self.read(name, default, _boolean)

    def integer(self, name: str, default: int) -> int:
        return self.read(name, default, _positive)

    def duration(self, name: str, default: float) -> float:
        return self.read(name, default, parse_duration)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _registry_only(text: str) -> bool:
    """``outboundTrafficPolicy.mode`` of Istio's mesh configuration."""
    if text not in ("ALLOW_ANY", "REGISTRY_ONLY"):
        raise ValueError("expected ALLOW_ANY or REGISTRY_ONLY")
    return text == "REGISTRY_ONLY"


def _certificate_lifetime(text: str) -> timedelta:
    lifetime = timedelta(seconds=parse_duration(text))
    if not MIN_ASKED_LIFETIME <= lifetime <= MAX_LEAF_LIFETIME:
        bounds = f"{MIN_ASKED_LIFETIME.total_seconds():.0f}s to {MAX_LEAF_LIFETIME.days * 24}h"
        raise ValueError(f"expected {bounds}")
    return lifetime


def _directives(text: str) -> str:
    parse_directives(text)
    return text


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError("expected a number above 0")
    return int(text)
