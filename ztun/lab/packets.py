"""What passes a node, packet by packet, as anyone with a sniffer on it would see.

Every packet that enters the node's namespace is looked at, from its pods and from the wire. TCP is put in order again
and read as TLS records, so that a tunnel is judged by all of its bytes; what is not of a tunnel is written down as a
stray. Sources: packet(7), RFC 791 section 3.1, RFC 8200 section 3, RFC 9293 section 3.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ztun.lab.network import BRIDGE, UPLINK
from ztun.lab.process import LabError
from ztun.lab.tap import Tapped, Watch, Watches
from ztun.mesh.model import HBONE_PORT, join_host_port

T = TypeVar("T")

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33
QUEUE_BYTES = 32 * 1024 * 1024  # of packets that wait to be read; what does not fit is counted by the kernel
PACKET_BYTES = 256 * 1024  # more than the largest that segmentation offload makes
AHEAD_BYTES = 4 * 1024 * 1024  # of one direction that arrived before its turn
MAX_STRAYS = 100  # told one by one
READ_AT_ONCE = 64  # packets, before others on the loop have a turn
ICMP, IGMP, TCP, UDP, ICMPV6 = 1, 2, 6, 17, 58
HOUSEKEEPING = (ICMP, IGMP, ICMPV6)
HOP_BY_HOP, ROUTING, DESTINATION = 0, 43, 60
SYN, ACK = 0x02, 0x10
MODULUS = 1 << 32


@dataclass(frozen=True, slots=True)
class Packet:
    """What is of interest in a packet: both ends, and what TCP or UDP carry. Ports are 0 where there are none."""

    protocol: int
    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0
    sequence: int = 0
    flags: int = 0
    payload: bytes = b""

    def __str__(self) -> str:
        names = {TCP: "TCP", UDP: "UDP"}
        ends = (
            join_host_port(ip, port) if port else ip
            for ip, port in ((self.source, self.source_port), (self.destination, self.destination_port))
        )
        return f"{names.get(self.protocol, f'protocol {self.protocol}')} {' -> '.join(ends)}"


def read_packet(data: bytes) -> Packet | None:
    """Read an IPv4 or IPv6 packet; None when it is not a whole one. A later fragment has no ports."""
    try:
        if data[0] >> 4 == 4:
            head, end, protocol = (data[0] & 15) * 4, int.from_bytes(data[2:4]), data[9]
            source, destination = (
                str(ipaddress.IPv4Address(data[12:16])),
                str(ipaddress.IPv4Address(data[16:20])),
            )
            if int.from_bytes(data[6:8]) & 0x1FFF:
                return Packet(protocol, source, destination)
        else:
            head, end, protocol = 40, 40 + int.from_bytes(data[4:6]), data[6]
            source, destination = (
                str(ipaddress.IPv6Address(data[8:24])),
                str(ipaddress.IPv6Address(data[24:40])),
            )
            while protocol in (HOP_BY_HOP, ROUTING, DESTINATION):
                protocol, head = data[head], head + (data[head + 1] + 1) * 8
        body = data[head : end if end > head else len(data)]  # offload may leave the length out
        if protocol == UDP:
            near, far = struct.unpack_from("!HH", body)
            return Packet(protocol, source, destination, near, far, payload=body[8:])
        if protocol == TCP:
            near, far, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", body)
            text = body[(offset >> 4) * 4 :]
            return Packet(protocol, source, destination, near, far, sequence, flags, text)
    except (IndexError, struct.error, ipaddress.AddressValueError):
        return None
    return Packet(protocol, source, destination, payload=body)


@dataclass(slots=True)
class InOrder:
    """One direction of a TCP connection: segments in, the bytes that come next out. Nothing is given twice."""

    _next: int = -1
    _ahead: dict[int, bytes] = field(default_factory=dict)

    def feed(self, packet: Packet) -> bytes:
        """The bytes that are complete now. Raises :class:`LabError` when too many arrived before their turn."""
        sequence, data = packet.sequence, packet.payload
        if packet.flags & SYN:
            self._next, sequence = (packet.sequence + 1) % MODULUS, (packet.sequence + 1) % MODULUS
            self._ahead.clear()
        if not data:
            return b""
        if self._next < 0:
            self._next = sequence  # it was there before anybody looked
        self._ahead[sequence] = max(data, self._ahead.get(sequence, b""), key=len)
        found = bytearray()
        while (part := self._part()) is not None:
            found += part
            self._next = (self._next + len(part)) % MODULUS
        if sum(map(len, self._ahead.values())) > AHEAD_BYTES:
            raise LabError("lab_capture", "more of a connection is missing than can be waited for")
        return bytes(found)

    def _part(self) -> bytes | None:
        for sequence, data in list(self._ahead.items()):
            behind = (self._next - sequence) % MODULUS
            if behind >= MODULUS // 2:
                continue  # it is ahead
            del self._ahead[sequence]
            if behind < len(data):
                return data[behind:]
        return None


@dataclass(slots=True)
class _Connection:
    tapped: Tapped = field(default_factory=Tapped)
    up: InOrder = field(default_factory=InOrder)
    down: InOrder = field(default_factory=InOrder)


class PacketTap:
    """Reads the packets of one node. ``inside`` calls a function in its namespace."""

    def __init__(
        self, inside: Callable[[Callable[[], socket.socket]], socket.socket], outsiders: frozenset[str]
    ) -> None:
        self._inside = inside
        self.outsiders = outsiders
        """Addresses that are not in the mesh: what they send and get may be anything."""
        self._socket: socket.socket | None = None
        self.watches = Watches()
        self._connections: dict[tuple[str, int, str, int], _Connection] = {}
        self._broken = ""

    async def start(self) -> None:
        """Look on from now."""
        self._socket = self._inside(_open)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    async def close(self) -> None:
        """Look away."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    @contextlib.contextmanager
    def watch(self, watch: Watch) -> Iterator[Watch]:
        """Let ``watch`` see what passes until the end of the context; several may fill the same one."""
        with self.watches.watch(watch):
            try:
                yield watch
            finally:
                self._read(everything=True)
                if self._broken:
                    watch.strays.add(self._broken)

    def _read(self, *, everything: bool = False) -> None:
        assert self._socket is not None
        count = 0
        with contextlib.suppress(BlockingIOError):
            while everything or count < READ_AT_ONCE:
                data, (interface, kind, direction, *_) = self._socket.recvfrom(PACKET_BYTES)
                count += 1
                if direction != PACKET_OUTGOING and interface not in ("lo", BRIDGE):
                    self.packet(data, kind, between_nodes=interface == UPLINK)
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            self._broken = f"{dropped} packets were not seen, there were too many"

    def packet(self, data: bytes, kind: int, *, between_nodes: bool) -> None:
        """Look at one packet; ``kind`` is its EtherType."""
        if kind not in (ETH_P_IP, ETH_P_IPV6):
            return  # ARP; there is nothing else on a wire without other protocols
        packet = read_packet(data)
        if packet is not None and not self.outsiders.isdisjoint((packet.source, packet.destination)):
            return
        for watch in self.watches.open:
            watch.packets_between_nodes += between_nodes
            watch.readable.update(secret for secret in watch.secrets if secret in data)
        if packet is None:
            self._stray(f"{len(data)} bytes that are no packet")
        elif packet.protocol == TCP and HBONE_PORT in (packet.source_port, packet.destination_port):
            try:
                self._segment(packet)
            except LabError as error:
                self._broken = str(error)
        elif packet.protocol not in HOUSEKEEPING and (between_nodes or packet.protocol != UDP):
            self._stray(str(packet))

    def _stray(self, text: str) -> None:
        for watch in self.watches.open:
            if len(watch.strays) < MAX_STRAYS:
                watch.strays.add(text)

    def _segment(self, packet: Packet) -> None:
        up = packet.destination_port == HBONE_PORT
        near, far = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        key = (*near, *far) if up else (*far, *near)
        if packet.flags & SYN and up:
            self._connections[key] = _Connection()
        connection = self._connections.setdefault(key, _Connection())
        text = (connection.up if up else connection.down).feed(packet)
        if text:
            self.watches.show(connection.tapped, text, up=up)


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
    sock.setblocking(False)
    return sock
