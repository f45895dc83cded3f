"""What a gateway proxy listens on: the servers of all Gateway objects that select it, merged by address and port.

The oldest server on an address and port fixes the kind of the listener. HTTP servers share a port, TLS servers share
a port; anything else on a port that is taken is discarded and reported, because its routes are then dead without any
other sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from waypoint.routes.model import GatewayConfig, GatewayServer
from waypoint.routes.registry import HTTP_PROTOCOLS, TLS_PROTOCOLS
from ztun.routing import Diagnostic


class ListenerKind(Enum):
    """What a port carries."""

    TCP = "tcp"
    TLS = "tls"
    HTTP = "http"


class TlsTreatment(Enum):
    """What a TLS server does with the session."""

    NONE = "none"
    PASSTHROUGH = "passthrough"
    AUTO_PASSTHROUGH = "auto-passthrough"
    TERMINATE = "terminate"


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A server of a Gateway object that has its place on a listener. ``hosts`` are those it did not lose."""

    config: GatewayConfig
    server: GatewayServer
    hosts: tuple[tuple[str, str], ...]

    @property
    def treatment(self) -> TlsTreatment:
        """What it does with TLS."""
        return tls_treatment(self.server)

    @property
    def http(self) -> bool:
        """Whether it is for HTTP after all (HTTPS that is terminated)."""
        return self.server.protocol == "HTTPS" and self.treatment is TlsTreatment.TERMINATE


@dataclass(slots=True)
class Listener:
    """One address and port. ``bind`` is empty for all addresses."""

    bind: str
    port: int
    kind: ListenerKind
    servers: list[BoundServer] = field(default_factory=list)


def tls_treatment(server: GatewayServer) -> TlsTreatment:
    """What the ``tls`` part of a server asks for."""
    if server.protocol not in TLS_PROTOCOLS:
        return TlsTreatment.NONE
    mode = server.tls.mode if server.tls else ""
    if mode in ("", "PASSTHROUGH"):
        return TlsTreatment.PASSTHROUGH
    return TlsTreatment.AUTO_PASSTHROUGH if mode == "AUTO_PASSTHROUGH" else TlsTreatment.TERMINATE


def listener_kind(server: GatewayServer) -> ListenerKind:
    """The kind of listener a server needs."""
    if server.protocol in TLS_PROTOCOLS:
        return ListenerKind.TLS
    return ListenerKind.HTTP if server.protocol in HTTP_PROTOCOLS else ListenerKind.TCP


def selects(config: GatewayConfig, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether a Gateway object is meant for a gateway proxy; an empty selector is meant for all."""
    if config.same_namespace and config.namespace != namespace:
        return False
    return all(labels.get(key) == value for key, value in config.selector.items())


def merge(configs: Iterable[GatewayConfig]) -> tuple[dict[tuple[str, int], Listener], list[Diagnostic]]:
    """Listeners by (bind, port), and what lost its place. ``configs`` are in order of precedence."""
    listeners: dict[tuple[str, int], Listener] = {}
    found: list[Diagnostic] = []
    for config in configs:
        for server in config.servers:
            key = (server.bind, server.port)
            kind = listener_kind(server)
            listener = listeners.get(key)
            if listener is None:
                listener = listeners[key] = Listener(server.bind, server.port, kind)
            elif listener.kind is not kind or kind is ListenerKind.TCP:
                found.append(_conflict(config, server, listener))
                continue
            hosts = server.hosts
            if listener.kind is ListenerKind.TLS:
                hosts, lost = _without_taken(listener, config, server)
                found += lost
                if lost and not hosts:
                    continue
            listener.servers.append(BoundServer(config, server, hosts))
    return listeners, found


def _conflict(config: GatewayConfig, server: GatewayServer, listener: Listener) -> Diagnostic:
    owner = listener.servers[0].config
    place = f"{server.bind or '*'}:{server.port}"
    return Diagnostic(
        "GW-CONFLICT",
        "error",
        config.label,
        ("spec", "servers", server.index, "port"),
        f"{place} belongs to {owner.label} ({listener.kind.value}), which is older or sorts first; this "
        f"{server.protocol or 'unknown'} server is discarded, and every route bound to it is dead",
        "use another port or another bind address",
        config.document,
    )


def _without_taken(
    listener: Listener, config: GatewayConfig, server: GatewayServer
) -> tuple[tuple[tuple[str, str], ...], list[Diagnostic]]:
    taken = {host: bound.config for bound in listener.servers for _, host in bound.hosts}
    kept = tuple(entry for entry in server.hosts if entry[1] not in taken)
    lost = [
        Diagnostic(
            "GW-DUP-HOST",
            "warning",
            config.label,
            ("spec", "servers", server.index, "hosts"),
            f"host {host} on port {server.port} already belongs to {taken[host].label}",
            "remove it here or there",
            config.document,
        )
        for _, host in server.hosts
        if host in taken
    ]
    return kept, lost
