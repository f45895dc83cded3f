"""The check of the examples in a mesh of containers: ``python -m ztun.lab.composed``.

It runs in a container beside them, and reaches into none: clients are asked through their dialers, whether the proxies
have followed a change is read from their metrics, and rules are written to a directory that all of them read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import http.client
import ipaddress
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console

from ztun.errors import ZtunError
from ztun.lab.client import Conversation, talk_over
from ztun.lab.demo import TABLE_COLUMNS
from ztun.lab.dialer import dial
from ztun.lab.machine import read_plan
from ztun.lab.page import SPLIT_CONNECTIONS, PageCheck
from ztun.lab.page_mesh import CANARY, Documents, example
from ztun.lab.page_report import print_page
from ztun.lab.process import POLL_SECONDS, LabError
from ztun.lab.programs import HTTP_SECONDS, METRICS_PORT
from ztun.lab.topology import MeshPlan, PodPlan, ServicePlan
from ztun.mesh.model import HBONE_PORT

FOLLOW_SECONDS = 60.0  # for a change: a new pod is made, captured and served by then on a busy machine
ANY_NETWORK = ipaddress.IPv4Network(
    "10.0.0.0/8"
)  # for pods without an address of their own, which there are none of

_DECIDED_BY = re.compile(r"^ztun_(?:routing|gateway)_generation(?:\{.*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ComposedMesh:
    """The mesh of ``docker-compose.yaml``; what is in its directory ``mesh`` is always there."""

    canary: PodPlan

    def objects(self, *, canary: bool) -> Documents:
        """The Pod of the canary version, on the node and at the address that were kept for it."""
        (deployment,) = example("manifests/echo-server-backup")
        template = copy.deepcopy(deployment["spec"]["template"])
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **template["metadata"],
                "name": self.canary.name,
                "namespace": self.canary.namespace,
            },
            "spec": {**template["spec"], "nodeName": self.canary.node},
            "status": {
                "phase": "Running",
                "podIP": self.canary.ip,
                "podIPs": [{"ip": self.canary.ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        return [pod] if canary else []


@dataclass(slots=True)
class ComposedLab:
    """Containers that run. ``routers`` are the hosts whose proxies have routing rules."""

    plan: MeshPlan
    configuration: Path
    directory: Path
    rules: Path
    dialers: Path
    routers: Sequence[str]
    captured: bool = True
    _written: set[Path] = field(default_factory=set)

    async def change(self, name: str, documents: Documents | None) -> None:
        """Write one file of rules, and wait until every proxy that has rules decides by it."""
        before = {host: await asyncio.to_thread(_generation, host) for host in self.routers}
        file = self.rules / f"{name}.yaml"
        if documents is None:
            file.unlink()
        else:
            unfinished = self.rules / f".{name}"
            unfinished.write_text(yaml.safe_dump_all(documents, sort_keys=False))
            unfinished.replace(file)
            self._written.add(file)
        pods = [one["status"]["podIP"] for one in documents or () if one["kind"] == "Pod"]
        try:
            async with asyncio.timeout(FOLLOW_SECONDS), asyncio.TaskGroup() as waiting:
                for host, old in before.items():
                    waiting.create_task(_until_newer(host, old))
                for ip in pods:
                    waiting.create_task(_until_served(ip))
        except TimeoutError:
            message = f"not every proxy followed the change of {file.name} within {FOLLOW_SECONDS:.0f} s"
            raise LabError("lab_timeout", message, hint="docker-compose logs says which") from None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def withdraw(self) -> None:
        """Remove what was written: the mesh is as it was."""
        for file in self._written:
            file.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def call(
        self, client: PodPlan, service: ServicePlan, *, by_name: bool = False
    ) -> AsyncIterator[Conversation]:
        """A connection that a client makes to the first port of a service, by its name or by its virtual IP."""
        host = service.hostname if by_name else service.vip
        path = self.dialers / f"{client.name}.sock"
        async with talk_over(await asyncio.to_thread(dial, path, host, service.ports[0])) as conversation:
            yield conversation

    def socket(self) -> socket.socket:
        """A TCP socket here: this container is not in the mesh."""
        return socket.socket()


def _generation(host: str) -> float:
    """By which configuration a proxy decides; of several numbers the oldest. Raises :class:`LabError`."""
    connection = http.client.HTTPConnection(host, METRICS_PORT, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", "/metrics")
        found = _DECIDED_BY.findall(connection.getresponse().read().decode())
    except (OSError, http.client.HTTPException) as error:
        raise LabError("lab_http", f"{host} gives no metrics: {error}", hint="is it running?") from error
    finally:
        connection.close()
    if not found:
        raise LabError("lab_http", f"{host} does not say which configuration it decides by")
    return min(map(float, found))


async def _until_newer(host: str, old: float) -> None:
    while True:
        if await asyncio.to_thread(_generation, host) > old:
            return
        await asyncio.sleep(POLL_SECONDS)


async def _until_served(ip: str) -> None:
    """Wait for a pod's tunnels: they are accepted in its own namespace, once it is captured."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(ip, HBONE_PORT)
            writer.close()
            return
        await asyncio.sleep(POLL_SECONDS)


async def check(console: Console, lab: ComposedLab, mesh: ComposedMesh, connections: int) -> bool:
    """Go through the examples and print what was seen; True when all of it is right."""
    try:
        return print_page(console, await PageCheck(lab, mesh, connections=connections).run())
    finally:
        lab.withdraw()


def main(arguments: Sequence[str]) -> int:
    """Read the command line and check; gives the exit status."""
    parser = argparse.ArgumentParser(prog="ztun.lab.composed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mesh", type=Path, required=True, help="directory with mesh.yaml")
    parser.add_argument("--rules", type=Path, required=True, help="directory for the rules of the examples")
    parser.add_argument(
        "--dialers", type=Path, required=True, help="directory with the sockets of the clients"
    )
    parser.add_argument(
        "--router", action="append", required=True, help="host of a proxy that has routing rules"
    )
    parser.add_argument(
        "--canary", required=True, metavar="NODE/IP", help="where the canary version will run"
    )
    parser.add_argument(
        "--connections", type=int, default=SPLIT_CONNECTIONS, help="per mode, for the 80:20 split"
    )
    given = parser.parse_args(arguments)
    node, _, ip = given.canary.partition("/")
    canary = PodPlan("default", CANARY, CANARY, node, ip, "echo-server")
    console = Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    try:
        plan = read_plan(given.mesh, ANY_NETWORK)
        with tempfile.TemporaryDirectory() as directory:
            lab = ComposedLab(plan, given.mesh, Path(directory), given.rules, given.dialers, given.router)
            right = asyncio.run(check(console, lab, ComposedMesh(canary), given.connections))
    except ZtunError as error:
        print(f"error: {error}" + (f" (hint: {error.hint})" if error.hint else ""), file=sys.stderr)
        return 1
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
