"""Dialling the application of a local pod, so that it sees the client's address where that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztun.errors import ConnectError
from ztun.hbone.wire import ErrorCode
from ztun.mesh.model import join_host_port
from ztun.net.app_socket import AppSocket
from ztun.net.dial import Dial
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site

_log = get_logger("proxy")


class ApplicationDial:
    """A connection to ``address`` (ip, port) that is being made in the name of ``client_ip``.

    ``wait`` unless it is ``connected`` already, then ``take`` or ``reset`` it. Raises :class:`ConnectError`.
    """

    def __init__(self, plane: Plane, site: Site, address: tuple[str, int], client_ip: str) -> None:
        self._plane = plane
        self._site = site
        self._address = address
        self._client_ip = client_ip
        source_ip = client_ip if site.keep_source is not False else None
        self._dial = Dial(address, plane.settings.sockets, source_ip, site.namespace)

    @property
    def connected(self) -> bool:
        """Whether the kernel made the connection at once, as it does to an address on this machine."""
        return self._dial.connected

    async def wait(self) -> None:
        """Wait until it is made. Raises :class:`ConnectError`; nothing is left then."""
        await self._dial.wait(self._plane.settings.tunnel_timeouts.connect)

    def reset(self) -> None:
        """End a connection that was made and may not be used; the application sees a reset."""
        AppSocket(self._plane.poller, self._dial.sock).abort(ErrorCode.CANCEL)

    def take(self) -> AppSocket:
        """The application's end. Raises :class:`ConnectError` when it must see the client's address and cannot."""
        app = AppSocket(self._plane.poller, self._dial.sock)
        if self._dial.source_kept:
            return app
        if self._site.keep_source:
            app.abort(ErrorCode.CANCEL)
            raise ConnectError(
                "source_not_kept",
                f"the application cannot be dialled from {self._client_ip}",
                hint="the proxy needs NET_ADMIN, or unset ENABLE_ORIG_SRC",
            )
        _log.warning(
            "the client's address is not kept, the application sees the proxy's",
            application=join_host_port(*self._address),
            hint="the proxy needs NET_ADMIN",
        )
        return app
