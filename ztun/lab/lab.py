"""A running mesh: real programs, started, watched and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import yaml

from certs.directory import CaDirectory
from certs.spiffe import DEFAULT_TRUST_DOMAIN
from ztun.lab.fabric import Entry, Fabric
from ztun.lab.process import LabError, Program
from ztun.lab.tap import Tap, Watch
from ztun.lab.topology import MeshPlan, PodPlan, ServicePlan
from ztun.mesh.model import HBONE_PORT

LOOPBACK = "127.0.0.1"
ADMIN_PORT, METRICS_PORT, READINESS_PORT, SOCKS5_PORT = 15000, 15020, 15021, 15080
NEXT_NODE = 1000  # added to these ports per further node, where they are free
TAPPED_PORT = 25008  # where the proxies take HBONE when a tap stands on the usual port
HTTP_SECONDS = 5.0  # for an admin answer
ZTUN = (sys.executable, "-m", "ztun")
MAX_LOG_BYTES = 16 * 1024 * 1024  # of a proxy's log that is read back

_DECIDED_BY = re.compile(r"^ztun_(?:routing|gateway)_generation(?:\{.*\})? (\S+)$", re.MULTILINE)

Started: TypeAlias = tuple[Program, Callable[[], Awaitable[bool]], str]
"""A program, what tells that it is ready, and the word for that."""


@dataclass(frozen=True, slots=True)
class NodePorts:
    """The local ports of one node proxy."""

    admin: int
    metrics: int
    readiness: int


@dataclass(frozen=True, slots=True)
class Companion:
    """A proxy of one pod, besides the node proxies: what follows ``python -m``, without the options of all.

    With ``entries`` the connections of its pod enter the mesh through it.
    """

    name: str
    command: tuple[str, ...]
    pod: PodPlan
    entries: bool = False


class Lab:
    """The programs of a mesh and the directory with its configuration, its CA and their logs.

    With ``observed`` a tap stands in front of every pod's HBONE port, and connections are logged as JSON.
    """

    def __init__(
        self,
        plan: MeshPlan,
        fabric: Fabric,
        directory: Path,
        *,
        observed: bool = False,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.plan = plan
        self.directory = directory
        self.configuration = directory / "mesh"
        self.authority = directory / "ca"
        self.entries = fabric.entries(plan)
        self.ports: dict[str, NodePorts] = {}
        self._fabric = fabric
        self._observed = observed
        self._companions = companions
        self._logs = directory / "logs"
        self._programs: dict[str, Program] = {}
        self._taps = {
            pod.name: Tap((pod.ip, HBONE_PORT), (pod.ip, TAPPED_PORT)) for pod in plan.pods if observed
        }

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Lab]:
        """Start everything, wait until it is ready, stop it at the end of the context.

        Raises :class:`LabError` with the end of its log when a program does not become ready or ends by itself.
        """
        try:
            async with asyncio.TaskGroup() as watchers:
                try:
                    await self._start(watchers)
                    yield self
                finally:
                    await self._stop()
        except BaseExceptionGroup as failures:
            # The first failure is the cause; what follows from it is of no use to the reader.
            raise failures.exceptions[0] from None

    # -- asking the proxies ------------------------------------------------------------------------------------

    async def dump(self, node: str) -> dict[str, Any]:
        """The admin dump of a node's proxy."""
        url = f"http://{LOOPBACK}:{self.ports[node].admin}/config_dump"
        async with httpx.AsyncClient(trust_env=False, timeout=HTTP_SECONDS) as client:
            answer: dict[str, Any] = (await client.get(url)).raise_for_status().json()
            return answer

    def log_size(self, node: str) -> int:
        """A mark in the log of a node's proxy, for :meth:`access_record`."""
        return self._programs[node].log.stat().st_size

    async def access_record(
        self, node: str, since: int, wanted: Callable[[Mapping[str, Any]], bool]
    ) -> Mapping[str, Any]:
        """The first access-log record after a mark that ``wanted`` accepts; waits for it."""
        found: list[Mapping[str, Any]] = []

        async def logged() -> bool:
            found.extend(one for one in self._access_records(node, since) if wanted(one))
            return bool(found)

        await self._programs[node].until(logged, "reporting the connection in its access log")
        return found[0]

    def pid(self, program: str) -> int | None:
        """The process id of a node's proxy or of an echo server (by its Deployment's name)."""
        return self._programs[program].pid

    # -- changing the mesh -------------------------------------------------------------------------------------

    def apply(self, name: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Write (or replace) one configuration file; the proxies follow by themselves."""
        self.configuration.mkdir(exist_ok=True)
        unfinished = self.configuration / f".{name}"
        unfinished.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        unfinished.replace(self.configuration / f"{name}.yaml")

    def withdraw(self, name: str) -> None:
        """Remove a configuration file."""
        (self.configuration / f"{name}.yaml").unlink()

    async def change(self, name: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Write (or replace) one configuration file, and wait until every proxy decides by it."""
        before = {proxy: await self._generation(proxy) for proxy in self.ports}
        self.apply(name, documents)
        async with asyncio.TaskGroup() as waiting:
            for proxy, old in before.items():
                condition = partial(self._decides_by_newer, proxy, old)
                what = "following the change of its configuration"
                waiting.create_task(self._programs[proxy].until(condition, what))

    async def until_policies(self, wanted: Callable[[set[str]], bool]) -> None:
        """Wait until the policies (``namespace/name``) of every proxy are as wanted."""
        for node in self.plan.nodes:

            async def follows(name: str = node.name) -> bool:
                policies = (await self.dump(name))["policies"]
                return wanted({f"{one['namespace']}/{one['name']}" for one in policies})

            await self._programs[node.name].until(follows, "following the change of its configuration")

    # -- entering and observing the mesh ---------------------------------------------------------------------

    def entry(self, client: PodPlan, service: ServicePlan) -> Entry:
        """Where to connect in order to reach the first port of a service as a client."""
        return next(one for one in self.entries if one.client == client and one.host == service.hostname)

    @contextlib.contextmanager
    def watch(self, *secrets: str) -> Iterator[Watch]:
        """A :class:`Watch` over all that passes between proxies until the end of the context."""
        watch = Watch(tuple(secret.encode() for secret in secrets))
        with ExitStack() as open_watches:
            for tap in self._taps.values():
                open_watches.enter_context(tap.watch(watch))
            yield watch

    # -- inside ------------------------------------------------------------------------------------------------

    async def _start(self, watchers: asyncio.TaskGroup) -> None:
        self._logs.mkdir(parents=True)
        CaDirectory(self.authority).create(DEFAULT_TRUST_DOMAIN, now=datetime.now(UTC))
        self.apply("mesh", self.plan.objects)
        for tap in self._taps.values():
            await tap.start()
        ready: list[Started] = []
        for pod in self.plan.servers:
            ready += self._echo_programs(pod)
        for number, node in enumerate(self.plan.nodes):
            entries = [entry for entry in self.entries if entry.client.node == node.name]
            command = ("ztun", "proxy", "--node", node.name)
            ready.append(self._proxy_program(number, node.name, command, entries))
        for number, one in enumerate(self._companions, len(self.plan.nodes)):
            entries = [entry for entry in self.entries if one.entries and entry.client == one.pod]
            ready.append(self._proxy_program(number, one.name, one.command, entries))
        for program, _, _ in ready:
            self._programs[program.name] = program
            await program.start()
        async with asyncio.TaskGroup() as waiting:
            for program, condition, what in ready:
                waiting.create_task(program.until(condition, what))
        for program in self._programs.values():
            watchers.create_task(program.watch())

    async def _stop(self) -> None:
        await asyncio.gather(*(program.stop() for program in self._programs.values()))
        for tap in self._taps.values():
            await tap.close()

    def _echo_programs(self, pod: PodPlan) -> Iterator[Started]:
        for number, echo in enumerate(pod.echoes):
            ports = ",".join(map(str, echo.ports))
            command = [*ZTUN, "echo", "--host", pod.ip, "--port", ports, "--say", echo.say]
            name = f"{pod.owner}-{number}" if number else pod.owner
            program = Program(name, self._fabric.in_pod(pod, command), self._log_file(name))
            address = (pod.ip, echo.ports[0])
            yield program, partial(_accepts, *address), "listening"

    def _proxy_program(
        self, number: int, name: str, what: Sequence[str], entries: Sequence[Entry]
    ) -> Started:
        ports = self.ports[name] = NodePorts(
            *(_free_port(port + number * NEXT_NODE) for port in (ADMIN_PORT, METRICS_PORT, READINESS_PORT))
        )
        command = [sys.executable, "-m", *what, "--config", str(self.configuration)]
        command += ["--ca", str(self.authority), "--admin-port", str(ports.admin)]
        command += ["--metrics-port", str(ports.metrics), "--readiness-port", str(ports.readiness)]
        for entry in entries:
            command += ["--forward", entry.forward]
        environment = {"UNSTABLE_ENABLE_SOCKS5": "true"}
        if self._observed:
            command += ["--access-log", "json"]
            environment["ZTUN_HBONE_PORT"] = str(TAPPED_PORT)
        program = Program(name, self._fabric.on_node(name, command), self._log_file(name), environment)
        return program, partial(_answers, ports.readiness, "/healthz/ready"), "ready"

    async def _generation(self, proxy: str) -> int:
        return int((await self.dump(proxy))["generation"])

    async def _decides_by_newer(self, proxy: str, old: int) -> bool:
        loaded = await self._generation(proxy)
        if loaded <= old:
            return False
        url = f"http://{LOOPBACK}:{self.ports[proxy].metrics}/metrics"
        async with httpx.AsyncClient(trust_env=False, timeout=HTTP_SECONDS) as client:
            text = (await client.get(url)).raise_for_status().text
        # Proxies with routing report what they decide by; others decide by what is loaded.
        return all(float(one) >= loaded for one in _DECIDED_BY.findall(text))

    def _log_file(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _access_records(self, node: str, since: int) -> Iterator[Mapping[str, Any]]:
        with self._programs[node].log.open("rb") as file:
            file.seek(since)
            for line in file.read(MAX_LOG_BYTES).splitlines():
                # A line that is being written at this moment is read whole the next time.
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and record.get("scope") == "access":
                        yield record


async def _accepts(ip: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(ip, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _answers(port: int, path: str) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=HTTP_SECONDS) as client:
        try:
            return (await client.get(f"http://{LOOPBACK}:{port}{path}")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def _free_port(wanted: int) -> int:
    """The wanted port, or any other that is free on 127.0.0.1 at this moment."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise LabError("lab_no_port", f"no port is free on {LOOPBACK}")
