"""The part of the tunnel that the ``h2`` package handles: header blocks, SETTINGS and PING.

``h2`` keeps the HPACK state, validates headers (RFC 9113 section 8) and checks that SETTINGS are legal. Streams live
in it only from HEADERS until they are established or refused; afterwards the tunnel alone knows them. That keeps its
bookkeeping small and its "streams open" properties, which walk every stream on each new one, out of the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.settings import SettingCodes, Settings
from h2.stream import StreamClosedBy

from ztun.hbone.settings import TunnelSettings

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

MAX_HEADER_TABLE_BYTES = 4096
"""RFC 9113 section 6.5.2's default; a peer that offers more would make us remember and search all we ever sent."""


class ControlPlane(H2Connection):
    """``h2`` with the stream limits switched off (the tunnel enforces them) and with streams it can forget."""

    MAX_CLOSED_STREAMS = (
        1024  # memory for frames that arrive late; older streams count as closed all the same
    )

    def __init__(self, settings: TunnelSettings, *, client_side: bool) -> None:
        super().__init__(
            H2Configuration(
                client_side=client_side,
                header_encoding=None,
                normalize_inbound_headers=False,  # joined cookies would hide how many fields there were
            )
        )
        values: dict[SettingCodes, int] = {
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
        self.decoder.max_header_list_size = values[SettingCodes.MAX_HEADER_LIST_SIZE]
        self.max_inbound_frame_size = settings.max_frame_size

    @property
    def open_inbound_streams(self) -> int:
        """Always 0: a stream too many is refused by the tunnel, not a reason to close the connection."""
        return 0

    @property
    def open_outbound_streams(self) -> int:
        """Always 0: the pool never opens more than the peer allows."""
        return 0

    def preface(self) -> bytes:
        """The first bytes of the connection: the client's magic, if we are the client, and our SETTINGS."""
        self.initiate_connection()
        return self.data_to_send()

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[list[Event], bytes]:
        """Take complete frames; give events and the replies they need. Raises ``h2`` ``ProtocolError``."""
        events = self.receive_data(data)
        if self.encoder.header_table_size > MAX_HEADER_TABLE_BYTES:
            self.encoder.header_table_size = MAX_HEADER_TABLE_BYTES
        return events, self.data_to_send()

    def headers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], *, end_stream: bool) -> bytes:
        """A header block as frames."""
        self.send_headers(stream_id, headers, end_stream=end_stream)
        return self.data_to_send()

    def forget(self, stream_id: int) -> None:
        """Drop a stream; header blocks that still arrive for it are answered with RST_STREAM."""
        if self.streams.pop(stream_id, None) is not None:
            self.expect_late(stream_id)

    def expect_late(self, stream_id: int) -> None:
        """Answer header blocks for a dropped stream with RST_STREAM, however long ago it was dropped."""
        self._closed_streams[stream_id] = StreamClosedBy.SEND_RST_STREAM
