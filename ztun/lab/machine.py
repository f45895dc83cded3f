"""A node by itself: ``python -m ztun.lab.machine`` makes the pods of one machine or container, and runs them.

It does for a node what a kubelet and a network plug-in would do, from the same documents that the proxies read: a
network namespace for each pod of the node with a cable to a bridge, an echo server or a dialer in it, and the node
agent beside them, which captures the pods. Pods come and go with their documents. The node proxy is somebody else's:
it learns of the pods from the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ztun.agent.places import namespace_path
from ztun.errors import ConfigError
from ztun.lab.addresses import AddressPlan
from ztun.lab.netns import write_resolver
from ztun.lab.network import BRIDGE, SETTINGS, Network, bridge_lines, first_host, pod_cable
from ztun.lab.process import STOP_SECONDS, LabError
from ztun.lab.programs import ZTUN
from ztun.lab.reservation import remove_namespaces, run_batch
from ztun.lab.topology import MeshPlan, PodPlan, plan_mesh
from ztun.net.namespaces import NetworkNamespace
from ztun.resources.documents import configuration_files, latest_of_each, parse_documents, read_file
from ztun.sources.watching import Watch

PODS_TABLE, PODS_PREFERENCE = 200, 200  # before the main table, which is asked at 32766
_SYSTEM = Path("/proc/sys")


@dataclass(frozen=True, slots=True)
class Machine:
    """What one node is told. ``dialers`` is the directory for the sockets of its clients."""

    node: str
    configuration: Path
    pods: ipaddress.IPv4Network
    dialers: Path
    uds: Path
    state: Path


def read_plan(configuration: Path, pods: ipaddress.IPv4Network) -> MeshPlan:
    """The mesh that the documents describe; the pods of every node are on the network ``pods`` unless they say more.

    Raises :class:`ConfigError` with the place of what cannot be used, ``OSError`` for what cannot be read.
    """
    documents = []
    for file in configuration_files(configuration):
        found, problems = parse_documents(read_file(file), file=str(file))
        if problems:
            raise ConfigError("lab_document", str(problems[0]))
        documents += found
    documents, _ = latest_of_each(documents)
    nodes = {str((one.data.get("spec") or {}).get("nodeName", "")) for one in documents if one.kind == "Pod"}
    if "" in nodes:
        raise ConfigError("lab_node", "a Pod has no spec.nodeName", hint="say which node it runs on")
    networks = dict.fromkeys(sorted(nodes), pods)
    return plan_mesh(documents, AddressPlan(nodes=dict.fromkeys(networks, ""), pods=networks))


class Pods:
    """The pods that this node has at the moment, and the processes in them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._running: dict[PodPlan, list[asyncio.subprocess.Process]] = {}
        self._network = Network(AddressPlan({machine.node: ""}, {machine.node: machine.pods}), "")

    def open(self) -> None:
        """Make the bridge. Raises :class:`LabError`.

        The way to the pods is in a table of its own: they have addresses of the network that the node is on, and a
        container engine refuses to connect a container to a network that its main table leads elsewhere.
        """
        pods = self._machine.pods
        run_batch(
            [
                *bridge_lines(),
                f"address add {first_host(pods)}/32 dev {BRIDGE}",
                f"route add {pods} dev {BRIDGE} table {PODS_TABLE}",
                f"rule add lookup {PODS_TABLE} pref {PODS_PREFERENCE}",
            ]
        )

    async def follow(self) -> None:
        """Make the pods fit the documents, again and again, until cancelled."""
        await self.fit()
        watch = Watch(lambda problem: print(problem, file=sys.stderr, flush=True), recursive=True)
        while True:
            async with contextlib.aclosing(watch.notices([self._machine.configuration])) as notices:
                async for _ in notices:
                    await self.fit()

    async def fit(self) -> None:
        """Remove the pods that are gone, make those that are new. What cannot be read changes nothing."""
        try:
            plan = read_plan(self._machine.configuration, self._machine.pods)
        except (ConfigError, OSError, ValueError) as error:
            print(
                f"the documents cannot be used, pods stay as they are: {error}", file=sys.stderr, flush=True
            )
            return
        # A pod is known by its name, as the agent knows it; ambient mode is what puts it into the mesh.
        wanted = {replace(pod, netns=pod.name) for pod in plan.pods_on(self._machine.node)}
        for pod in [one for one in self._running if one not in wanted]:
            await self._remove(pod)
        for pod in sorted(wanted - self._running.keys(), key=lambda one: one.name):
            try:
                await self._add(pod)
            except LabError as error:
                print(f"pod {pod.namespace}/{pod.name} cannot be made: {error}", file=sys.stderr, flush=True)
                await self._remove(pod)

    async def close(self) -> None:
        """Remove all of them."""
        for pod in list(self._running):
            await self._remove(pod)
        run_batch([f"link delete {BRIDGE}", f"rule delete pref {PODS_PREFERENCE}"])

    async def _add(self, pod: PodPlan) -> None:
        run_batch([f"netns add {pod.netns}"])
        self._running[pod] = processes = []
        namespace = NetworkNamespace.open(namespace_path(pod.netns))
        try:
            namespace.run(_write_settings)
        finally:
            namespace.close()
        write_resolver(pod)
        run_batch([pod_cable(pod), self._network.node_port_line(pod)])
        run_batch(self._network.pod_lines(pod), namespace=pod.netns)
        for command in self._programs(pod):
            process = await start("ip", "netns", "exec", pod.netns, *command)
            processes.append(process)  # one by one: those that were started are stopped if the next cannot be
        print(f"pod {pod.namespace}/{pod.name} runs at {pod.ip}", flush=True)

    async def _remove(self, pod: PodPlan) -> None:
        await stop(self._running.pop(pod))
        remove_namespaces([pod.netns])
        print(f"pod {pod.namespace}/{pod.name} is gone", flush=True)

    def _programs(self, pod: PodPlan) -> Iterator[Sequence[str]]:
        for echo in pod.echoes:
            yield (*ZTUN, "echo", "--port", ",".join(map(str, echo.ports)), "--say", echo.say)
        if not pod.echoes:
            socket_path = self._machine.dialers / f"{pod.name}.sock"
            yield (sys.executable, "-m", "ztun.lab.dialer", str(socket_path))


async def start(*command: str) -> asyncio.subprocess.Process:
    """Start a program that writes where this one writes."""
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)


async def stop(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """SIGTERM, and SIGKILL for those that have not ended in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.returncode is None:
                process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*(process.wait() for process in processes))
                return


async def run(machine: Machine) -> None:
    """Be a node until cancelled. Raises :class:`LabError` when its agent ends by itself, or no pod can be had here."""
    pods = Pods(machine)
    pods.open()
    agent = await start(
        *(*ZTUN, "agent", "--directory", str(machine.configuration), "--node", machine.node),
        *("--uds", str(machine.uds), "--state", str(machine.state)),
        *("--control", str(machine.state / "control.sock")),
    )
    following = asyncio.ensure_future(pods.follow())
    ended = asyncio.ensure_future(agent.wait())
    try:
        await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        raise LabError("lab_process_ended", f"the node agent ended by itself with {agent.returncode}")
    finally:
        following.cancel()
        await asyncio.wait({following})
        await stop([agent])
        ended.cancel()
        await pods.close()


def _write_settings() -> None:
    """In a container the settings cannot be written; most are right as they are."""
    for name, value in SETTINGS.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            file = _SYSTEM / name
            if file.read_text().strip() == value:
                continue
            with contextlib.suppress(OSError):
                file.write_text(value)
                continue
            if name.endswith("rp_filter") and file.read_text().strip() == "1":
                raise LabError(
                    "lab_rp_filter",
                    f"{name} is 1, which drops answers of captured connections, and cannot be changed here",
                    hint=f"sysctl -w {name.replace('/', '.')}=2 on the host",
                )


def main(arguments: Sequence[str]) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="ztun.lab.machine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--node", required=True)
    parser.add_argument("--config", type=Path, required=True, help="directory with the documents of the mesh")
    parser.add_argument(
        "--pods", type=ipaddress.IPv4Network, required=True, help="network of this node's pods"
    )
    parser.add_argument(
        "--dialers", type=Path, required=True, help="directory for the sockets of the clients"
    )
    parser.add_argument("--uds", type=Path, required=True, help="socket for the node proxy")
    parser.add_argument("--state", type=Path, default=Path("/run/agent"))
    given = parser.parse_args(arguments)
    machine = Machine(given.node, given.config, given.pods, given.dialers, given.uds, given.state)
    try:
        asyncio.run(_until_terminated(machine))
    except LabError as error:
        print(f"error: {error}" + (f" (hint: {error.hint})" if error.hint else ""), file=sys.stderr)
        return 1
    return 0


async def _until_terminated(machine: Machine) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await run(machine)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
