"""The fabric of network namespaces: nodes and pods with addresses, cables and routes of their own. Needs root.

Programs on a node share the machine's files; programs in a pod see a ``resolv.conf`` of their own, as a kubelet would
write it. Labs never meet: each has a wire of its own, so their addresses are the same.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ztun.agent.places import namespace_path
from ztun.agent.rules import CaptureOptions, load_program
from ztun.errors import ConfigError, EnrolmentError
from ztun.lab.addresses import AddressPlan
from ztun.lab.fabric import NODES, Entry
from ztun.lab.network import FORWARDING, OUTSIDE_MACHINE, SETTINGS, WIRE, Network, pod_port
from ztun.lab.packets import PacketTap
from ztun.lab.process import LabError
from ztun.lab.reservation import (
    IP_SECONDS,
    LABS,
    RESOLVERS,
    Reservation,
    remove_namespaces,
    reserve,
    run_batch,
)
from ztun.lab.topology import MeshPlan, PodPlan
from ztun.net.namespaces import NetworkNamespace

T = TypeVar("T")

COMMANDS = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
NODE_NETWORK = ipaddress.IPv4Network("172.30.0.0/24")
POD_NETWORK = ipaddress.IPv4Network("10.244.0.0/16")  # a /24 per node, as Kubernetes' own tools divide it
POD_NETWORK6 = ipaddress.IPv6Network("fd00:244::/48")
SERVICE_NETWORK6 = ipaddress.IPv6Network("fd00:58::/112")
CLUSTER_DNS = "10.96.0.10"  # where pods ask; whoever is captured is answered by the proxy before that
ATTEMPTS = 10  # to make a directory below one that others remove when it is empty
AT_ONCE = 4  # of the short-lived ``ip`` that fill a namespace each

_SYSTEM = Path("/proc/sys")


class NetnsFabric:
    """Two nodes and whatever pods are laid out on them."""

    name = "netns"

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation
        self._network = Network(_addresses(reservation.prefix), reservation.prefix)
        self._open: dict[str, NetworkNamespace] = {}
        self._names: dict[str, str] = {}

    @property
    def runtime(self) -> Path:
        """Directory for the sockets and the state of node agents."""
        return self._reservation.path

    @property
    def addresses(self) -> AddressPlan:
        """Addresses for the nodes, pods and services."""
        return self._network.addresses

    @property
    def network(self) -> Network:
        """Names and addresses of the machines."""
        return self._network

    @contextlib.contextmanager
    def lay_out(self, plan: MeshPlan) -> Iterator[None]:
        """Make the machines, the pods and their network; remove all of it at the end of the context."""
        machines = self._network.machines()
        try:
            self._make(machines)
            for name in (*self.addresses.nodes, WIRE, OUTSIDE_MACHINE):
                self._know(name, self._network.named(name))
            self._set(machines[1:], FORWARDING)
            run_batch(self._network.cables())
            work = [(self._network.named(WIRE), self._network.wire_lines())]
            work.append((self._network.named(OUTSIDE_MACHINE), self._network.outside_lines()))
            work += [
                (self._network.named(one), self._network.node_lines(one)) for one in self.addresses.nodes
            ]
            _fill(work)
            self.add_pods(plan.pods)
            yield
        finally:
            for namespace in self._open.values():
                namespace.close()
            self._open.clear()
            names = list(self._names.values())
            self._names.clear()
            self._reservation.remove(names)

    def add_pods(self, pods: Sequence[PodPlan]) -> None:
        """Make pods and connect them to their nodes."""
        self._make([pod.netns for pod in pods])
        for pod in pods:
            self._know(pod.name, pod.netns)
            write_resolver(pod)
        run_batch(self._network.pod_cable(pod) for pod in pods)
        ports: dict[str, list[str]] = {}
        for pod in pods:
            ports.setdefault(pod.node, []).append(self._network.node_port_line(pod))
        _fill(
            [
                *((pod.netns, self._network.pod_lines(pod)) for pod in pods),
                *((self._network.named(node), lines) for node, lines in ports.items()),
            ]
        )

    def remove_pod(self, pod: PodPlan) -> None:
        """Remove a pod with its namespace.

        Its cable goes first: whoever still holds the namespace open would keep it, and a pod that comes again under the
        same address needs the port on the node.
        """
        run_batch([f"link delete {pod_port(pod)}"], namespace=self._names[pod.node])
        self._open.pop(pod.name).close()
        del self._names[pod.name]
        self._reservation.remove([pod.netns])

    def on_node(self, node: str, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` on a node."""
        return ["nsenter", f"--net={namespace_path(self._names[node])}", "--", *command]

    def in_pod(self, pod: PodPlan, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` in a pod."""
        return ["ip", "netns", "exec", pod.netns, *command]

    def entries(self, plan: MeshPlan) -> tuple[Entry, ...]:
        """A client's connection to the address of a service is captured."""
        return tuple(
            Entry(client, service.vip, port, service.hostname, port)
            for client in plan.clients
            for service in plan.services
            for port in service.ports
        )

    def inside(self, where: str, work: Callable[[], T]) -> T:
        """Call a short function on a node or in a pod; sockets that it makes stay there."""
        return self._open[where or OUTSIDE_MACHINE].run(work)

    def outsiders(self, plan: MeshPlan) -> frozenset[str]:
        """The addresses of whoever is not in the mesh."""
        strangers = {address for pod in plan.pods if pod.mode == "none" for address in pod.addresses}
        return frozenset(strangers | {self._network.outside_address(), self._network.outside_address6()})

    def observers(self, plan: MeshPlan) -> list[PacketTap]:
        """One on each node, which sees every packet that enters it from a pod or from the wire."""
        outsiders = self.outsiders(plan)
        return [PacketTap(partial(self.inside, node), outsiders) for node in self.addresses.nodes]

    def connect_node(self, node: str, *, connected: bool) -> None:
        """Pull a node's cable out of the wire, or put it back."""
        state = "up" if connected else "down"
        run_batch([f"link set {self._network.port_of(node)} {state}"], namespace=self._network.named(WIRE))

    def _make(self, names: Sequence[str]) -> None:
        self._reservation.add(names)
        run_batch(f"netns add {name}" for name in names)
        self._set(names, SETTINGS)

    def _know(self, where: str, name: str) -> None:
        self._names[where] = name
        self._open[where] = NetworkNamespace.open(namespace_path(name))

    def _set(self, names: Iterable[str], settings: dict[str, str]) -> None:
        for name in names:
            namespace = NetworkNamespace.open(namespace_path(name))
            try:
                namespace.run(partial(_write_settings, settings))
            finally:
                namespace.close()


@contextlib.contextmanager
def netns_fabric(labs: Path = LABS) -> Iterator[NetnsFabric]:
    """Names for a lab of its own, and what is left of it removed at the end of the context.

    Raises :class:`ConfigError` ``lab_netns`` when this machine or this user cannot have network namespaces.
    """
    if reason := why_not():
        raise ConfigError("lab_netns", f"no network namespaces: {reason}", hint="use --fabric loopback")
    with reserve(labs) as reservation:
        yield NetnsFabric(reservation)


def why_not() -> str:
    """Why this machine or this user cannot have network namespaces; empty when they can. Tries it out."""
    if os.geteuid() != 0:
        return "they need root"
    for command, package in COMMANDS.items():
        if shutil.which(command) is None:
            return f"the command {command} is not installed (package {package})"
    probe = f"ztun-probe-{os.getpid()}"
    try:
        RESOLVERS.mkdir(exist_ok=True)
        run_batch([f"netns add {probe}"])
        namespace = NetworkNamespace.open(namespace_path(probe))
        try:
            namespace.run(_try_packets)
        finally:
            namespace.close()
        run_batch(["link set lo up", "link add type bridge", "link add type veth"], namespace=probe)
        done = subprocess.run(
            ("ip", "netns", "exec", probe, "nft", "-f", "-"),
            input=load_program(CaptureOptions()),
            capture_output=True,
            text=True,
            timeout=IP_SECONDS,
        )
        if done.returncode != 0:
            return f"their traffic cannot be captured here ({done.stderr.strip().splitlines()[0]})"
    except (LabError, EnrolmentError, OSError, subprocess.TimeoutExpired) as error:
        return f"they cannot be made here ({str(error).splitlines()[0]})"
    finally:
        remove_namespaces([probe])
    return ""


def _try_packets() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).close()


def _addresses(prefix: str) -> AddressPlan:
    pods = dict(zip(NODES, list(POD_NETWORK.subnets(new_prefix=24))[1:], strict=False))
    pods6 = dict(zip(NODES, list(POD_NETWORK6.subnets(new_prefix=64))[1 : len(NODES) + 1], strict=True))
    has_ipv6 = (_SYSTEM / "net/ipv6").is_dir()
    return AddressPlan(
        nodes={node: str(NODE_NETWORK[number]) for number, node in enumerate(NODES, 1)},
        pods=pods,
        pods6=pods6 if has_ipv6 else {},
        services6=SERVICE_NETWORK6 if has_ipv6 else None,
        netns=prefix,
    )


def _write_settings(settings: dict[str, str]) -> None:
    for name, value in settings.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            (_SYSTEM / name).write_text(value)


def write_resolver(pod: PodPlan) -> None:
    """Say where the programs of a pod ask for names, as a kubelet does."""
    directory = RESOLVERS / pod.netns
    for attempt in range(1, ATTEMPTS + 1):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            break
        except FileNotFoundError:  # another lab has just removed the empty directory above
            if attempt == ATTEMPTS:
                raise
    search = f"{pod.namespace}.svc.cluster.local svc.cluster.local cluster.local"
    text = f"search {search}\nnameserver {CLUSTER_DNS}\noptions ndots:5\n"
    (directory / "resolv.conf").write_text(text)


def _fill(work: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Run the lines of each namespace, several namespaces at a time."""
    with ThreadPoolExecutor(AT_ONCE) as workers:
        for done in [workers.submit(run_batch, list(lines), namespace=name) for name, lines in work]:
            done.result()
