"""The gateway process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waypoint.gateway.role import GatewayRole
from ztun.proxy.process import run_process
from ztun.proxy.runtime import Runtime
from ztun.routing import load_engine

if TYPE_CHECKING:
    from waypoint.gateway.view import Name
    from ztun.config import ProxySettings


def run(settings: ProxySettings, name: Name) -> int:
    """Run a gateway until it is told to stop; gives the exit status. Raises :class:`ConfigError` at start."""
    engine = load_engine(settings.engine)
    return run_process(
        lambda: Runtime(settings, lambda plane: GatewayRole(plane, name, engine), component="waypoint").run()
    )
