"""What Istio's own waypoint does: ``port`` counts, ``destinationSubnets`` is ignored and so widens.

For comparison, e.g. ``waypoint explain --engine istio-waypoint`` before moving a configuration.
"""

from __future__ import annotations

from waypoint.engines.router import TableRouter, index_for
from waypoint.routes.matching import Dialect
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Hop, Router


class IstioWaypointRouter(TableRouter):
    """Decides as Istio's waypoint would."""

    dialect = Dialect.ISTIO_WAYPOINT

    def _by_client(self, hop: Hop) -> bool:
        return False


class IstioWaypointEngine:
    """See the module."""

    name = "istio-waypoint"

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> IstioWaypointRouter:
        """Compile a snapshot."""
        return IstioWaypointRouter(index_for(snapshot, previous))
