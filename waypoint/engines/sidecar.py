"""The sidecar engine: every attribute, subsets, weights, server names and traffic policy.

At a gateway it reads rules as Istio's gateways do. At a waypoint it evaluates what the tunnel tells about the client:
its namespace, and no labels, so a block with ``sourceLabels`` does not match there.
"""

from __future__ import annotations

from waypoint.engines.router import TableRouter, index_for
from waypoint.routes.matching import Dialect
from ztun.mesh.snapshot import Snapshot
from ztun.routing import Router


class SidecarRouter(TableRouter):
    """Decides on the client's side."""

    dialect = Dialect.SIDECAR


class SidecarEngine:
    """See the module."""

    name = "sidecar"

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> SidecarRouter:
        """Compile a snapshot."""
        return SidecarRouter(index_for(snapshot, previous))
