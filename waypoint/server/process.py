"""A waypoint as a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waypoint.server.role import WaypointRole
from ztun.proxy.process import run_process
from ztun.proxy.runtime import Runtime
from ztun.routing import load_engine

if TYPE_CHECKING:
    from waypoint.server.instance import WaypointName
    from ztun.config import ProxySettings


def run(settings: ProxySettings, waypoint: WaypointName) -> int:
    """Run a waypoint until it is told to stop; gives the exit status. Raises :class:`ConfigError` at start."""
    engine = load_engine(settings.engine)
    return run_process(
        lambda: Runtime(
            settings, lambda plane: WaypointRole(plane, waypoint, engine), component="waypoint"
        ).run()
    )
