"""The listening sockets of a gateway: opened, kept and closed as the configuration changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ztun.errors import ConfigError
from ztun.mesh.model import join_host_port
from ztun.net.listeners import finish_all, listen
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from waypoint.gateway.places import Address, Place
    from ztun.net.listeners import Accept, Listener
    from ztun.proxy.plane import Plane


class Listeners:
    """One socket per place. A socket that stays is not touched, whatever becomes of the routes behind it.

    ``accept`` makes what takes the connections of an address.
    """

    def __init__(self, plane: Plane, accept: Callable[[Address], Accept]) -> None:
        self._plane = plane
        self._accept = accept
        self._open: dict[Address, Listener] = {}
        self._failed: dict[Address, str] = {}
        self._log = get_logger("gateway")

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def failed(self) -> int:
        """How many could not be opened."""
        return len(self._failed)

    def fit(self, places: Mapping[Address, Place]) -> None:
        """Open what is missing and close what is no longer wanted. A failure is logged once."""
        for address in [one for one in self._open if one not in places]:
            self._open.pop(address).close()
            self._log.info("listener closed", address=join_host_port(*address))
        self._failed = {address: why for address, why in self._failed.items() if address in places}
        for address, place in places.items():
            if address not in self._open:
                self._try(address, place)

    def _try(self, address: Address, place: Place) -> None:
        options = self._plane.settings.sockets
        try:
            server = listen(self._plane.poller, *address, self._accept(address), options, purpose=place.label)
        except ConfigError as error:
            why = str(error)
            if self._failed.get(address) != why:
                self._failed[address] = why
                self._log.warning("listener cannot be opened yet", error=error)
            return
        self._failed.pop(address, None)
        self._open[address] = server
        self._log.info("listener opened", address=join_host_port(*address), server=place.label)

    async def close(self) -> None:
        """Close all of them; open connections go on."""
        finish_all(self._open.values())
        self._open.clear()
