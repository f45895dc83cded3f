"""Answers on the client's side, for one dialled service port and one class of clients (namespace and labels).

Everything but the destination address and the server name was decided when the table was made, by ``mesh_walk``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from waypoint.routes.chains import NameTable, PrefixTable
from waypoint.routes.destinations import Viewpoint
from waypoint.routes.outcome import Outcome
from ztun.mesh.model import IpNetwork
from ztun.routing import Action, Connection, Diagnostic


@dataclass(frozen=True, slots=True)
class Client:
    """A class of clients that get the same answers."""

    namespace: str
    labels: Mapping[str, str]
    registry_only: bool = False

    @property
    def view(self) -> Viewpoint:
        """From where destinations are resolved."""
        return Viewpoint(self.namespace, self.labels)


class MeshTable:
    """Outcomes by destination address, then by server name; what fits neither gets ``unknown``."""

    def __init__(self, unknown: Outcome) -> None:
        self._prefixes: PrefixTable[NameTable[Outcome]] = PrefixTable()
        self.unknown = unknown
        self.http: Outcome | None = None
        """For HTTP on a port that declares no protocol: layer 4 has nothing to say then."""
        self.by_server_name = False

    def keep(self, network: IpNetwork | None, pattern: str, outcome: Outcome) -> None:
        """Answer a network (None: every address) and server name pattern, unless that is already answered."""
        names: NameTable[Outcome]
        if network is not None:
            names = NameTable()
            names = self._prefixes.add(network, names) or names
        else:
            names = self._prefixes.default = self._prefixes.default or NameTable()
        if names.get(pattern) is None:
            names.set(pattern, outcome)

    def find(self, connection: Connection) -> Outcome:
        """The outcome for one connection. As in Envoy, the address is decided before the server name."""
        if self.http is not None and connection.protocol == "http":
            return self.http
        names = self._prefixes.find(connection.destination_ip)
        found = names.best(connection.server_name.lower()) if names is not None else None
        return self.unknown if found is None else found


def unknown_outcome(registry_only: bool, diagnostics: Sequence[Diagnostic] = ()) -> Outcome:
    """For an address that no service owns."""
    action = Action.BLACKHOLE if registry_only else Action.PASSTHROUGH
    return Outcome(action, diagnostics=diagnostics)
