"""The machines of the netns fabric: connected as they should be, and gone without a trace."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ztun.lab.demo import plan_mesh_of_examples
from ztun.lab.fabric import OUTSIDE
from ztun.lab.netns import NetnsFabric, netns_fabric, why_not
from ztun.lab.process import LabError
from ztun.lab.reservation import RESOLVERS, reserve
from ztun.lab.topology import MeshPlan, PodPlan

REASON = why_not()
netns = [pytest.mark.netns, pytest.mark.skipif(bool(REASON), reason=f"no network namespaces: {REASON}")]
pytestmark = netns

LAID_OUT = """
import sys, time
from pathlib import Path
from ztun.lab.demo import plan_mesh_of_examples
from ztun.lab.netns import netns_fabric
with netns_fabric(Path(sys.argv[1])) as fabric:
    with fabric.lay_out(plan_mesh_of_examples(fabric)):
        print(fabric.network.prefix, flush=True)
        time.sleep(600)
"""


@dataclass
class World:
    fabric: NetnsFabric
    plan: MeshPlan


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with netns_fabric() as fabric:
        plan = plan_mesh_of_examples(fabric)
        with fabric.lay_out(plan):
            yield World(fabric, plan)


def listen(fabric: NetnsFabric, where: str, ip: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return fabric.inside(where, partial(socket.create_server, (ip, 9000), family=family))


def dial(fabric: NetnsFabric, where: str, ip: str) -> socket.socket:
    return fabric.inside(where, partial(socket.create_connection, (ip, 9000), timeout=30))


def talk(fabric: NetnsFabric, client: str, server: str, ip: str) -> str:
    """Connect, and give the address that the server sees."""
    with listen(fabric, server, ip) as listener, dial(fabric, client, ip) as calling:
        accepted, peer = listener.accept()
        with accepted:
            calling.sendall(b"x")
            assert accepted.recv(1) == b"x"
    return str(peer[0])


def traces(prefix: str = f"ztun-{os.getpid()}") -> dict[str, set[str]]:
    """Whatever a lab could leave on this machine."""
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    return {
        "namespaces": {one for one in run(["ip", "netns", "list"]).stdout.split() if one.startswith(prefix)},
        "resolvers": {one.name for one in RESOLVERS.glob(f"{prefix}*")},
        "links": {one.name for one in Path("/sys/class/net").iterdir()},
        "routes": set(run(["ip", "route", "show", "table", "all"]).stdout.splitlines()),
        "rules": set(run(["ip", "rule", "show"]).stdout.splitlines()),
        "tables": set(run(["nft", "list", "tables"]).stdout.splitlines()),
    }


@pytest.mark.parametrize("server", ["echo-server-prod", "echo-server-2"], ids=["other node", "same node"])
def test_a_pod_reaches_a_pod_with_its_own_address(world: World, server: str) -> None:
    client, called = world.plan.pod("default", "telnet-client"), world.plan.pod("default", server)
    for own, ip in zip(client.addresses, called.addresses, strict=True):
        assert talk(world.fabric, client.name, called.name, ip) == own


def test_nodes_and_the_machine_outside_reach_pods_and_are_reached(world: World) -> None:
    pod = world.plan.pod("default", "echo-server-prod")
    outside = world.fabric.network.outside_address(), world.fabric.network.outside_address6()
    for ip, own in zip(outside, pod.addresses, strict=True):
        assert talk(world.fabric, OUTSIDE, pod.name, own) == ip
        assert talk(world.fabric, pod.name, OUTSIDE, ip) == own
    node = world.plan.nodes[0]
    assert talk(world.fabric, node.name, pod.name, pod.ip) == node.ip


def test_the_machine_itself_is_not_connected(world: World) -> None:
    """Nothing is sent to find out: where the machine's own routes lead, somebody may answer."""
    pod = world.plan.pod("default", "telnet-client")
    show = ["ip", "route", "show", "table", "all", "root"]
    for network in (f"{pod.ip}/16", "10.96.0.0/12"):
        ip = ipaddress.ip_interface(network).network
        assert not subprocess.run([*show, str(ip)], capture_output=True, text=True, check=True).stdout


def test_a_pod_resolves_names_as_in_a_cluster(world: World) -> None:
    pod = world.plan.pod("foo", "telnet-client-foo")
    command = world.fabric.in_pod(pod, ["cat", "/etc/resolv.conf"])
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "search foo.svc.cluster.local svc.cluster.local cluster.local"
    assert lines[2] == "options ndots:5"


def test_a_node_is_cut_off_and_comes_back(world: World) -> None:
    client, server = world.plan.pod("default", "telnet-client"), world.plan.pod("default", "echo-server-prod")
    near = world.plan.pod("default", "echo-server-2")
    with listen(world.fabric, server.name, server.ip) as listener:
        world.fabric.connect_node("node-b", connected=False)
        sock = world.fabric.inside(client.name, socket.socket)
        with sock:
            sock.settimeout(0.3)
            assert sock.connect_ex((server.ip, 9000)) != 0
        assert talk(world.fabric, client.name, near.name, near.ip) == client.ip
        world.fabric.connect_node("node-b", connected=True)
        with dial(world.fabric, client.name, server.ip):
            accepted, peer = listener.accept()
            accepted.close()
            assert peer[0] == client.ip


def test_a_pod_comes_goes_and_comes_again_with_its_address(world: World) -> None:
    client = world.plan.pod("default", "telnet-client")
    pod = PodPlan("default", "late-1", "late", "node-b", "10.244.2.99", "default", (), "fd00:244:0:2::99",
                  f"{world.fabric.network.prefix}-late")  # fmt: skip
    before = traces(world.fabric.network.prefix)
    for _ in range(2):
        world.fabric.add_pods([pod])
        for own, ip in zip(client.addresses, pod.addresses, strict=True):
            assert talk(world.fabric, client.name, pod.name, ip) == own
        world.fabric.remove_pod(pod)
        assert traces(world.fabric.network.prefix) == before


def test_names_carry_the_process_and_two_labs_never_meet(world: World) -> None:
    with netns_fabric() as second:
        prefixes = {world.fabric.network.prefix, second.network.prefix}
        assert len(prefixes) == 2
        assert all(re.fullmatch(rf"ztun-{os.getpid()}(-\d+)?", prefix) for prefix in prefixes)
        plan = plan_mesh_of_examples(second)
        with second.lay_out(plan):
            server = plan.pod("default", "echo-server-prod")
            assert server.ip == world.plan.pod("default", "echo-server-prod").ip
            twin = world.plan.pod("default", "echo-server-prod")
            client = plan.pod("default", "telnet-client")
            with (
                listen(world.fabric, twin.name, twin.ip),
                listen(second, server.name, server.ip) as own,
                dial(second, client.name, server.ip),
            ):
                own.settimeout(30)
                own.accept()[0].close()


def test_nothing_is_left_of_a_lab(world: World) -> None:
    before = traces()
    with netns_fabric() as fabric, netns_fabric() as unused:
        with fabric.lay_out(plan_mesh_of_examples(fabric)):
            during = traces()
            assert len(during["namespaces"] - before["namespaces"]) == 10
            assert {key for key in during if during[key] != before[key]} == {"namespaces", "resolvers"}
        assert unused.runtime.is_dir()
    assert traces() == before
    assert not fabric.runtime.exists()
    assert not unused.runtime.exists()


def start(labs: Path) -> tuple[subprocess.Popen[str], str]:
    child = subprocess.Popen(
        [sys.executable, "-c", LAID_OUT, str(labs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


def test_ctrl_c_removes_everything(tmp_path: Path) -> None:
    child, prefix = start(tmp_path)
    assert prefix == f"ztun-{child.pid}"
    assert traces(f"{prefix}-")["namespaces"]
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert not traces(f"{prefix}-")["namespaces"]
    assert not traces(f"{prefix}-")["resolvers"]


def test_the_next_lab_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    killed, gone = start(tmp_path)
    alive, stays = start(tmp_path)
    try:
        killed.kill()
        killed.communicate()
        left = traces(f"{gone}-")
        assert len(left["namespaces"]) == 10
        with reserve(tmp_path):
            assert not traces(f"{gone}-")["namespaces"]
            assert not traces(f"{gone}-")["resolvers"]
            assert len(traces(f"{stays}-")["namespaces"]) == 10
    finally:
        alive.send_signal(signal.SIGINT)
        alive.communicate(timeout=30)


def test_a_lab_that_cannot_be_laid_out_leaves_nothing(world: World) -> None:
    before = traces()
    with netns_fabric() as fabric:
        plan = plan_mesh_of_examples(fabric)
        twice = MeshPlan(plan.nodes, (*plan.pods, plan.pods[0]), plan.services, plan.objects)
        with pytest.raises(LabError, match=plan.pods[0].netns) as refused, fabric.lay_out(twice):
            pass
        assert refused.value.code == "lab_network"
    assert traces() == before
