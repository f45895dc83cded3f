"""What an Envoy of the tests is made of: the ends of tunnels, and what stands between two of them.

:class:`TunnelEntry` is the client side (``tcp_proxy.tunneling_config``), :class:`Terminator` the server side
(an HTTP connection manager that ends CONNECT), :class:`Onward` the proxy between two tunnels, :class:`PlainEntry` a
client without a tunnel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from certs.spiffe import SpiffeId
from tests.peers.credentials import Credentials

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class TunnelEntry:
    """A listener whose connections become CONNECT streams to ``peer`` for ``authority``.

    ``expected`` is what the peer's certificate must carry. Entries with the same peer, credentials and
    expectation share their tunnels. ``headers`` are added to the CONNECT request.
    """

    name: str
    listen: Address
    authority: str
    peer: Address
    credentials: Credentials
    expected: SpiffeId
    headers: Mapping[str, str] = field(default_factory=dict)
    streams_per_tunnel: int | None = None
    access_log: Path | None = None

    @property
    def cluster(self) -> str:
        """The name of the Envoy cluster, equal for entries that share tunnels."""
        return f"tunnel {self.peer[0]}:{self.peer[1]} {self.credentials.identity} {self.expected}"


@dataclass(frozen=True, slots=True)
class Terminator:
    """A CONNECT terminator. ``routes`` maps an authority (``"*"`` for any) to the application's address.

    ``expected`` limits the tunnels to clients with these identities; empty admits any certificate of the trust
    roots. ``allowed`` is an RBAC policy that each CONNECT is judged by; empty means no such filter.
    ``requests_per_connection`` makes Envoy send GOAWAY after that many streams.
    """

    name: str
    listen: Address
    credentials: Credentials
    routes: Mapping[str, Address]
    expected: Sequence[SpiffeId] = ()
    allowed: Sequence[SpiffeId] = ()
    max_concurrent_streams: int | None = None
    requests_per_connection: int | None = None
    access_log: Path | None = None


@dataclass(frozen=True, slots=True)
class Onward:
    """Takes CONNECT for a service and opens CONNECT to the pod behind it: what a waypoint does.

    ``routes`` maps an authority to the one that is asked for at ``peer``. The stream is handed on as it is, the
    shortest way Envoy has for this; Istio's waypoints end it and go through two internal listeners more.
    """

    name: str
    listen: Address
    credentials: Credentials
    routes: Mapping[str, str]
    peer: Address
    expected: SpiffeId
    clients: Sequence[SpiffeId] = ()
    allowed: Sequence[SpiffeId] = ()
    access_log: Path | None = None

    @property
    def cluster(self) -> str:
        """The name of the Envoy cluster."""
        return f"onward {self.peer[0]}:{self.peer[1]} {self.expected}"


@dataclass(frozen=True, slots=True)
class PlainEntry:
    """A listener whose connections go to ``target``: as they are, or inside TLS when there is a ``server_name``.

    ``authority`` (PEM file) is what the server is verified with; ``certificate`` and ``key`` are shown to it.
    """

    name: str
    listen: Address
    target: Address
    server_name: str = ""
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def cluster(self) -> str:
        """The name of the Envoy cluster."""
        return f"plain {self.name}"


Part = TunnelEntry | Terminator | Onward | PlainEntry
