"""The contract between a proxy and a routing engine, and the loading of engines.

A proxy asks its engine for a ``Router`` whenever the mesh changes, and the router for a ``Decision`` whenever a
connection arrives. Both calls are pure: the mesh is a ``Snapshot``, the only randomness is the generator handed in.
An engine is any class without constructor arguments that has ``name`` and ``router`` and is listed in the entry point
group ``ztun.routing_engines`` of an installed package.
"""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from certs.spiffe import SpiffeId
from ztun.errors import ConfigError
from ztun.mesh.document import Document, FieldPath, Problem, Severity, format_path
from ztun.mesh.model import Locality, Service, Workload
from ztun.mesh.snapshot import Snapshot
from ztun.traffic.policy import DEFAULT_POLICY, TrafficPolicy

ENGINE_GROUP = "ztun.routing_engines"
MESH_GATEWAY = "mesh"
"""The name of the hop that sidecars and waypoints are in a ``gateways`` list."""
DEFAULT_ROOT_NAMESPACE = "istio-system"

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class HopKind(Enum):
    """Which kind of proxy asks."""

    CLIENT = "client"
    WAYPOINT = "waypoint"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Hop:
    """The proxy that asks. ``namespace`` is its own; ``labels`` select Gateway objects at a gateway."""

    kind: HopKind
    namespace: str
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS, hash=False)
    locality: Locality = field(default_factory=Locality)
    registry_only: bool = False
    """Destinations outside the mesh's registry are blackholed instead of passed through."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What is known of a connection before a byte is forwarded. Addresses are canonical text.

    ``destination_host`` is set instead of the address where only the service's name is known (a tunnel that names a
    service). ``source_namespace`` and ``source_labels`` are empty where the proxy cannot know them.
    ``protocol`` is ``"tcp"``, ``"tls"`` or ``"http"``, as far as bytes were looked at; ``server_name`` is the SNI of a
    ClientHello, if one was read.
    """

    destination_ip: str
    destination_port: int
    source_ip: str = ""
    source_namespace: str = ""
    source_labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS, hash=False)
    source_identity: SpiffeId | None = None
    protocol: str = "tcp"
    server_name: str = ""
    destination_host: str = ""


class Action(Enum):
    """What becomes of the connection."""

    ROUTE = "route"
    """A rule took it."""
    FALLTHROUGH = "fallthrough"
    """No rule took it: the dialled service itself."""
    REJECT = "reject"
    """A rule took it, but no destination of that rule is usable: accepted, then closed."""
    NO_LISTENER = "no_listener"
    """A gateway has nothing on this port or for this server name."""
    PASSTHROUGH = "passthrough"
    """The address belongs to no service: forwarded to where it was going."""
    BLACKHOLE = "blackhole"
    """The address belongs to no service, and only the registry is allowed."""
    HTTP_LAYER = "http_layer"
    """An HTTP port: routing at layer 4 has nothing to say; the dialled service is used."""


class DestinationStatus(Enum):
    """Whether a destination can take its share."""

    OK = "ok"
    NO_HOST = "no_host"
    NO_PORT = "no_port"
    NO_SUBSET = "no_subset"
    NO_ENDPOINTS = "no_endpoints"
    NOT_PERMITTED = "not_permitted"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing a person should know about a resource. ``subject`` is e.g. ``VirtualService default/echo``.

    ``path`` is the place inside ``document``; without a document the finding has no position in a file.
    """

    code: str
    severity: Severity
    subject: str
    path: FieldPath
    message: str
    hint: str = ""
    document: Document | None = field(default=None, compare=False, repr=False)

    def problem(self) -> Problem:
        """The finding with its position, which is looked up here: not for the path of a connection."""
        location = self.document.locate(self.path) if self.document else None
        where = format_path(self.path)
        return Problem(location, self.subject, where, self.message, self.hint, self.code, self.severity)

    def __str__(self) -> str:
        place = f"{self.subject} {format_path(self.path)}".strip()
        return f"{self.code} {place}: {self.message}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True, slots=True)
class RouteEndpoint:
    """An endpoint that can be dialled: the workload, one of its addresses and the port it listens on."""

    workload: Workload
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a share of the connections goes. The shares of one decision sum to 1.

    ``weight`` is as written, ``None`` when a rule has a single destination (its weight has no meaning).
    """

    host: str
    port: int
    share: Fraction
    status: DestinationStatus
    subset: str = ""
    weight: int | None = None
    service: Service | None = None
    endpoints: tuple[RouteEndpoint, ...] = ()
    policy: TrafficPolicy = DEFAULT_POLICY

    @property
    def usable(self) -> bool:
        """Whether a connection sent here has an endpoint."""
        return self.status is DestinationStatus.OK


@dataclass(frozen=True, slots=True)
class Matched:
    """The rule that took a connection; ``block`` is None for a rule without match blocks."""

    virtual_service: str
    section: str
    rule: int
    block: int | None

    def __str__(self) -> str:
        block = "" if self.block is None else f".match[{self.block}]"
        return f"{self.virtual_service} {self.section}[{self.rule}]{block}"


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One line of the reasoning: ``depth`` for indentation, the thing looked at, and what came of it."""

    depth: int
    subject: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one connection. ``chosen`` was drawn from ``destinations``; it may be unusable (black hole)."""

    action: Action
    service: Service | None = None
    matched: Matched | None = None
    destinations: tuple[Destination, ...] = ()
    chosen: Destination | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    trace: tuple[TraceStep, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the connection must be closed instead of forwarded."""
        if self.action in (Action.REJECT, Action.NO_LISTENER, Action.BLACKHOLE):
            return True
        if self.chosen is None:
            return self.action is not Action.PASSTHROUGH
        return not self.chosen.usable


class Router(Protocol):
    """An engine's compiled view of one snapshot; decides connections until the next snapshot."""

    def decide(
        self, connection: Connection, hop: Hop, rng: random.Random, *, trace: bool = False
    ) -> Decision:
        """Choose for one connection. Total: bad configuration is a diagnostic, never an exception.

        With ``trace`` the decision carries the reasoning; the outcome is the same for the same state of ``rng``.
        """
        ...

    def wants_server_name(self, connection: Connection, hop: Hop) -> bool:
        """Whether the decision depends on a ClientHello, which the proxy then has to wait for (bounded)."""
        ...

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What this engine cannot honour in the whole configuration, each finding once per object."""
        ...


@runtime_checkable
class DocumentReader(Protocol):
    """A router that reads documents itself and leaves out those it cannot read."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was left out."""
        ...


@runtime_checkable
class RoutingEngine(Protocol):
    """A way of deciding, by name."""

    name: str

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> Router:
        """Compile a snapshot; ``previous`` is the last router of this engine, for whatever can be reused."""
        ...


def engine_names() -> tuple[str, ...]:
    """The names of all installed engines, sorted."""
    return tuple(sorted({entry.name for entry in importlib.metadata.entry_points(group=ENGINE_GROUP)}))


def load_engine(name: str) -> RoutingEngine:
    """Load and make the engine called ``name``; raises ``ConfigError`` when there is none or it does not load."""
    entries = importlib.metadata.entry_points(group=ENGINE_GROUP, name=name)
    if not entries:
        known = ", ".join(engine_names()) or "none"
        raise ConfigError(
            "unknown_engine",
            f"no routing engine is called {name!r}",
            hint=f"installed engines: {known}; an engine is an entry point in group {ENGINE_GROUP}",
        )
    entry = next(iter(entries))
    try:
        engine = entry.load()()
    except Exception as error:  # a plug-in may fail in any way; the user needs its name
        raise ConfigError(
            "engine_load", f"routing engine {name!r} ({entry.value}) does not load: {error}"
        ) from error
    if not isinstance(engine, RoutingEngine):
        raise ConfigError(
            "engine_contract",
            f"routing engine {name!r} ({entry.value}) lacks name or router",
            hint="see ztun.routing.RoutingEngine",
        )
    return engine
