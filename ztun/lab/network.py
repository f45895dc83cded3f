"""The network of a lab of namespaces, as the text that ``ip -batch`` reads; pure.

A node has a bridge with a port per pod, and a cable to the wire, a namespace with a bridge that joins the nodes. Pods
have the node's bridge as their gateway, nodes route each other's pods over the wire. One more machine, ``outside``,
is on the wire and not in the mesh. Nothing is connected to the machine's own network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ztun.lab.addresses import AddressPlan
from ztun.lab.topology import PodPlan

BRIDGE, UPLINK = "br0", "eth0"
WIRE, OUTSIDE_MACHINE = "wire", "outside"
OUTSIDE_HOST = 100  # its number on the wire; nodes count from 1
HARDWARE_PREFIX = (0x0A, 0x58)  # locally administered; what Kubernetes uses
WIRE_NETWORK6 = ipaddress.IPv6Network("fd00:30::/64")

SETTINGS = {  # of every namespace, before it has links
    "net/ipv4/conf/all/rp_filter": "0",  # answers of a captured connection come back another way
    "net/ipv6/conf/default/accept_dad": "0",  # or an address could be used a second later only
    "net/ipv6/conf/default/accept_ra": "0",
}
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


@dataclass(frozen=True, slots=True)
class Network:
    """Names and commands. ``prefix`` begins the name of every namespace."""

    addresses: AddressPlan
    prefix: str

    def machines(self) -> list[str]:
        """The namespaces besides those of pods."""
        return [self.named(name) for name in (WIRE, OUTSIDE_MACHINE, *self.addresses.nodes)]

    def named(self, machine: str) -> str:
        """The namespace of a node, of the wire, or of the machine outside."""
        return f"{self.prefix}-{machine}"

    def cables(self) -> Iterator[str]:
        """Virtual cables from the machines to the wire."""
        for port, machine in self._ports():
            yield _cable(self.named(machine), self.named(WIRE), port)

    def pod_cable(self, pod: PodPlan) -> str:
        """The virtual cable between a pod and its node."""
        return pod_cable(pod, self.named(pod.node))

    def wire_lines(self) -> Iterator[str]:
        """What is to be done on the wire."""
        yield from bridge_lines()
        for port, _ in self._ports():
            yield f"link set {port} master {BRIDGE} up"

    def node_lines(self, node: str) -> Iterator[str]:
        """What is to be done on a node."""
        yield "link set lo up"
        yield from self._on_the_wire(self._number(node))
        yield from bridge_lines()
        for network in self._pod_networks(node):
            yield f"address add {first_host(network)}/{network.prefixlen} dev {BRIDGE}"
        yield from self._routes(node)

    def node_port_line(self, pod: PodPlan) -> str:
        """What is to be done on a node for one pod."""
        return f"link set {pod_port(pod)} master {BRIDGE} up"

    def outside_lines(self) -> Iterator[str]:
        """What is to be done on the machine outside."""
        yield "link set lo up"
        yield from self._on_the_wire(OUTSIDE_HOST)
        yield from self._routes()

    def pod_lines(self, pod: PodPlan) -> Iterator[str]:
        """What is to be done in a pod."""
        yield "link set lo up"
        yield f"link set {UPLINK} up"
        for address, network in zip(pod.addresses, self._pod_networks(pod.node), strict=False):
            yield f"address add {address}/{network.prefixlen} dev {UPLINK}"
            yield f"route add default via {first_host(network)}"

    def outside_address(self) -> str:
        """The IPv4 address of the machine outside."""
        return str(self._wire_network()[OUTSIDE_HOST])

    def outside_address6(self) -> str:
        """The IPv6 address of the machine outside."""
        return str(WIRE_NETWORK6[OUTSIDE_HOST])

    def port_of(self, node: str) -> str:
        """The port of the wire that a node's cable is in; without it the node is cut off."""
        return next(port for port, machine in self._ports() if machine == node)

    def _ports(self) -> Iterator[tuple[str, str]]:
        for number, machine in enumerate((*self.addresses.nodes, OUTSIDE_MACHINE), 1):
            yield f"port{number}", machine

    def _number(self, node: str) -> int:
        return list(self.addresses.nodes).index(node) + 1

    def _wire_network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(f"{next(iter(self.addresses.nodes.values()))}/24", strict=False)

    def _on_the_wire(self, number: int) -> Iterator[str]:
        network = self._wire_network()
        yield f"address add {network[number]}/{network.prefixlen} dev {UPLINK}"
        if self.addresses.pods6:
            yield f"address add {WIRE_NETWORK6[number]}/{WIRE_NETWORK6.prefixlen} dev {UPLINK}"
        yield f"link set {UPLINK} up"

    def _routes(self, own: str = "") -> Iterator[str]:
        """To the pods of all nodes but one's own."""
        for node in self.addresses.nodes:
            if node == own:
                continue
            number = self._number(node)
            for network in self._pod_networks(node):
                wire = self._wire_network() if network.version == 4 else WIRE_NETWORK6
                yield f"route add {network} via {wire[number]}"

    def _pod_networks(self, node: str) -> Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        yield self.addresses.pods[node]
        if node in self.addresses.pods6:
            yield self.addresses.pods6[node]


def pod_port(pod: PodPlan) -> str:
    """The port of its node's bridge that a pod is at."""
    return f"pod{int(ipaddress.IPv4Address(pod.ip)) % 65536}"


def pod_cable(pod: PodPlan, node: str = "") -> str:
    """The virtual cable between a pod and the namespace of its node, or the one that this runs in.

    Its hardware address follows from its address, as with Kubernetes' own plug-ins: a pod that comes again is found
    at once by neighbours that remember it.
    """
    hardware = ":".join(f"{byte:02x}" for byte in (*HARDWARE_PREFIX, *ipaddress.IPv4Address(pod.ip).packed))
    return _cable(pod.netns, node, pod_port(pod), f"address {hardware} ")


def _cable(inner: str, outer: str, port: str, options: str = "") -> str:
    where = f" netns {outer}" if outer else ""
    return f"link add name {UPLINK} {options}netns {inner} type veth peer name {port}{where}"


def bridge_lines() -> Iterator[str]:
    """The bridge that joins the pods of a node, or the nodes."""
    # Neighbour discovery is multicast, which a bridge that snoops holds back until it has learned.
    yield f"link add name {BRIDGE} type bridge stp_state 0 mcast_snooping 0"
    yield f"link set {BRIDGE} up"


def first_host(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """The address of a node among those of its pods."""
    return str(network[1])
