"""The network of namespaces as text: who is connected to whom, and by which way."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from ztun.lab.addresses import AddressPlan
from ztun.lab.network import Network
from ztun.lab.topology import PodPlan

pytestmark = pytest.mark.unit

ADDRESSES = AddressPlan(
    nodes={"node-a": "172.30.0.1", "node-b": "172.30.0.2"},
    pods={
        "node-a": ipaddress.IPv4Network("10.244.1.0/24"),
        "node-b": ipaddress.IPv4Network("10.244.2.0/24"),
    },
    pods6={
        "node-a": ipaddress.IPv6Network("fd00:244:0:1::/64"),
        "node-b": ipaddress.IPv6Network("fd00:244:0:2::/64"),
    },
    netns="ztun-1",
)
NETWORK = Network(ADDRESSES, "ztun-1")
POD = PodPlan("default", "web-1", "web", "node-a", "10.244.1.10", "web", (), "fd00:244:0:1::a", "ztun-1-web")


def test_a_pod_has_its_addresses_and_its_node_as_the_way_to_everybody() -> None:
    assert list(NETWORK.pod_lines(POD)) == [
        "link set lo up",
        "link set eth0 up",
        "address add 10.244.1.10/24 dev eth0",
        "route add default via 10.244.1.1",
        "address add fd00:244:0:1::a/64 dev eth0",
        "route add default via fd00:244:0:1::1",
    ]
    assert NETWORK.pod_cable(POD) == (
        "link add name eth0 address 0a:58:0a:f4:01:0a netns ztun-1-web "
        "type veth peer name pod266 netns ztun-1-node-a"
    )


def test_nodes_route_the_pods_of_the_others_and_not_their_own() -> None:
    routes = [line for line in NETWORK.node_lines("node-a") if line.startswith("route")]
    assert routes == [
        "route add 10.244.2.0/24 via 172.30.0.2",
        "route add fd00:244:0:2::/64 via fd00:30::2",
    ]
    outside = [line for line in NETWORK.outside_lines() if line.startswith("route")]
    assert [line.split()[2] for line in outside] == [
        "10.244.1.0/24",
        "fd00:244:0:1::/64",
        "10.244.2.0/24",
        "fd00:244:0:2::/64",
    ]


def test_there_is_no_ipv6_where_the_machine_has_none() -> None:
    network = Network(replace(ADDRESSES, pods6={}), "ztun-1")
    lines = [
        *network.node_lines("node-a"),
        *network.outside_lines(),
        *network.pod_lines(replace(POD, ip6="")),
    ]
    assert not [line for line in lines if ":" in line.split("dev")[0]]


def test_names_of_interfaces_fit_the_kernel() -> None:
    pod = replace(POD, ip="10.244.255.254")
    for line in (NETWORK.pod_cable(pod), *NETWORK.cables()):
        words = line.split()
        assert all(len(name) <= 15 for name in (words[3], words[words.index("peer") + 2]))
