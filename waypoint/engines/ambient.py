"""The ambient engine: of the match attributes only ``gateways`` counts, and weights are honoured.

A block that uses any other attribute never applies, and a rule of only such blocks never becomes a catch-all. The
answer depends on nothing about the client, so it is kept per service port; only the draw is per connection.
"""

from __future__ import annotations

from collections.abc import Iterator

from waypoint.engines.router import TableRouter, index_for
from waypoint.routes.findings import ambient_findings, once_per_object
from waypoint.routes.index import RouteIndex
from waypoint.routes.matching import Dialect
from waypoint.routes.waypoint_table import SubsetPolicy, WaypointRules
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Diagnostic, Hop, Router


class AmbientRouter(TableRouter):
    """Decides for waypoints and gateways. At a client it reads the rules as a waypoint in its namespace would."""

    dialect = Dialect.AMBIENT

    def __init__(self, index: RouteIndex, subset_policy: str = SubsetPolicy.RESOLVE) -> None:
        super().__init__(index)
        self._rules = WaypointRules(Dialect.AMBIENT, subset_policy)

    def waypoint_rules(self) -> WaypointRules:
        """See ``TableRouter``."""
        return self._rules

    def _by_client(self, hop: Hop) -> bool:
        return False

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Every attribute that is refused, once per object."""
        return (*super().diagnostics(), *self._refused())

    def _refused(self) -> Iterator[Diagnostic]:
        for owner in self.index.virtual_services:
            yield from once_per_object(
                finding for rule in owner.tcp if rule.targets for finding in ambient_findings(owner, rule)
            )


class AmbientEngine:
    """See the module. ``subset_policy`` ``skip`` skips every rule that names a subset."""

    name = "ambient"

    def __init__(self, subset_policy: str = SubsetPolicy.RESOLVE) -> None:
        self._subset_policy = subset_policy

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> AmbientRouter:
        """Compile a snapshot."""
        return AmbientRouter(index_for(snapshot, previous), self._subset_policy)
