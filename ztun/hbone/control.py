"""The part of the tunnel that the ``h2`` package handles: the preface, SETTINGS and PING.

Streams, header blocks and payload never reach it. It checks that SETTINGS are legal, keeps what both sides have
announced and acknowledged, and writes the answers.
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.settings import SettingCodes, Settings

from ztun.hbone.settings import TunnelSettings


class ControlPlane(H2Connection):
    """``h2`` for frames on stream 0."""

    def __init__(self, settings: TunnelSettings, *, client_side: bool) -> None:
        super().__init__(H2Configuration(client_side=client_side))
        values: dict[SettingCodes, int] = {
            SettingCodes.HEADER_TABLE_SIZE: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window,
            SettingCodes.MAX_FRAME_SIZE: settings.max_frame_size,
        }
        if client_side:
            values[SettingCodes.ENABLE_PUSH] = 0
            values[SettingCodes.MAX_HEADER_LIST_SIZE] = settings.client_header_list_size
        else:
            values[SettingCodes.MAX_HEADER_LIST_SIZE] = settings.server_header_list_size
            values[SettingCodes.MAX_CONCURRENT_STREAMS] = settings.max_concurrent_streams
        self.local_settings = Settings(client=client_side, initial_values=values)
        self.max_inbound_frame_size = settings.max_frame_size

    def preface(self) -> bytes:
        """The first bytes of the connection: the client's magic, if we are the client, and our SETTINGS."""
        self.initiate_connection()
        return self.data_to_send()

    def feed(self, data: bytes | bytearray) -> tuple[list[Event], bytes]:
        """Take complete frames; give events and the replies they need. Raises ``h2`` ``ProtocolError``."""
        events = self.receive_data(data)
        return events, self.data_to_send()
