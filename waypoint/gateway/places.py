"""Which addresses and ports a gateway listens on: the listeners of its Gateway objects, laid on its pod (pure).

A server's port is that of the gateway's Service where it has one: the pod listens on the target port then (Istio).
Without ``bind`` a server is on every address of the pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from waypoint.routes.gateway_table import OpenListener
from waypoint.routes.listeners import Listener, ListenerKind
from ztun.mesh.document import Severity
from ztun.mesh.model import Workload, canonical_ip, join_host_port
from ztun.routing import Diagnostic

Address: TypeAlias = tuple[str, int]
"""(IP address, port)."""


@dataclass(frozen=True, slots=True)
class Place:
    """An address to listen on, and the listener that is there. ``opened.listener`` has the port as declared."""

    address: Address
    opened: OpenListener

    @property
    def kind(self) -> ListenerKind:
        """What its connections carry."""
        return self.opened.listener.kind

    @property
    def label(self) -> str:
        """The server that owns it, for messages."""
        bound = self.opened.listener.servers[0]
        return f"{bound.config.label} servers[{bound.server.index}]"

    def declared(self, local_ip: str) -> Address:
        """The address and port that rules are written for, of a connection to ``local_ip``."""
        listener = self.opened.listener
        return listener.bind or local_ip, listener.port


@dataclass(frozen=True, slots=True)
class Plan:
    """The places by address, and the servers that have none."""

    places: Mapping[Address, Place]
    left_out: tuple[Diagnostic, ...]


def plan_places(listeners: Mapping[tuple[str, int], OpenListener], workload: Workload) -> Plan:
    """Lay the listeners, by (bind, port), on the addresses of the gateway's own pod."""
    places: dict[Address, Place] = {}
    left_out: list[Diagnostic] = []
    # A server with an address of its own comes before one that takes all addresses.
    for (bind, port), opened in sorted(listeners.items(), key=lambda item: (not item[0][0], item[0])):
        refused = _refusal(opened, bind)
        if refused is not None:
            left_out.append(refused)
            continue
        target = pod_port(workload, port)
        for ip in (canonical_ip(bind),) if bind else workload.addresses:
            place = Place((ip, target), opened)
            taken = places.setdefault(place.address, place)
            if taken is not place and taken.opened.listener.port != port:
                message = f"port {port} is port {target} of the pod, which {taken.label} already has"
                hint = "give the ports of the gateway's Service different target ports"
                left_out.append(_about(opened.listener, "GW-TARGETPORT-TAKEN", "error", message, hint))
    return Plan(places, tuple(left_out))


def pod_port(workload: Workload, port: int) -> int:
    """The port that a pod listens on for a port of its Services; the same one when no Service has it."""
    for _, ports in sorted(workload.services.items()):
        if port in ports:
            return ports[port]
    return port


def _refusal(opened: OpenListener, bind: str) -> Diagnostic | None:
    """Why there is nothing to listen on."""
    listener = opened.listener
    place = join_host_port(bind or "*", listener.port)
    if listener.kind is ListenerKind.HTTP:
        message = f"{place} is not opened: it is for HTTP, and this gateway routes TCP and TLS only"
        return _about(listener, "GW-HTTP", "warning", message, "use protocol TCP or TLS")
    if not opened.opened:
        message = f"{place} is not opened: no route of any VirtualService is for it"
        hint = "bind a VirtualService to the Gateway, with a host and a port of the server"
        return _about(listener, "GW-NO-ROUTE", "warning", message, hint)
    if bind:
        try:
            canonical_ip(bind)
        except ValueError:
            message = f"{bind} is no IP address, and unix sockets are not supported"
            return _about(listener, "GW-BIND", "error", message, "use an address of the gateway's pod")
    if not 0 < listener.port <= 65535:
        return _about(listener, "GW-PORT-NUMBER", "error", f"{listener.port} is no port", "1 to 65535")
    return None


def _about(listener: Listener, code: str, severity: Severity, message: str, hint: str) -> Diagnostic:
    bound = listener.servers[0]
    path = ("spec", "servers", bound.server.index)
    return Diagnostic(code, severity, bound.config.label, path, message, hint, bound.config.document)
