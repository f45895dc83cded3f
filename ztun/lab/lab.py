"""A running mesh: real programs, started, watched and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from certs.directory import CaDirectory
from certs.spiffe import DEFAULT_TRUST_DOMAIN
from ztun.lab.client import Conversation, talk
from ztun.lab.established import peers_of
from ztun.lab.fabric import OUTSIDE, Entry, Fabric, Observer
from ztun.lab.programs import SOCKS5_PORT, Companion, Programs, ProxyPorts, Started, get, read_log
from ztun.lab.tap import Watch
from ztun.lab.telnet import telnet_command, typed
from ztun.lab.topology import MeshPlan, PodPlan, ServicePlan

MAX_LOG_BYTES = 16 * 1024 * 1024  # of a proxy's log that is read back

_DECIDED_BY = re.compile(r"^ztun_(?:routing|gateway)_generation(?:\{.*\})? (\S+)$", re.MULTILINE)


class Lab:
    """The programs of a mesh and the directory with its configuration, its CA and their logs.

    With ``observed`` it can be watched what passes between the proxies, and connections are logged as JSON.
    ``environment`` has settings of all proxies.
    """

    def __init__(
        self,
        plan: MeshPlan,
        fabric: Fabric,
        directory: Path,
        *,
        observed: bool = False,
        companions: Sequence[Companion] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.plan = plan
        self.directory = directory
        self.configuration = directory / "mesh"
        self.authority = directory / "ca"
        self.fabric = fabric
        self.entries = fabric.entries(plan)
        self.programs = Programs(
            plan=plan,
            fabric=fabric,
            configuration=self.configuration,
            authority=self.authority,
            logs=directory / "logs",
            observed=observed,
            entries=self.entries,
            environment=environment or {},
        )
        self._companions = companions
        self._running: dict[str, Started] = {}
        self._watchers = asyncio.TaskGroup()
        self.observers: Sequence[Observer] = fabric.observers(plan) if observed else ()

    @property
    def captured(self) -> bool:
        """Whether the pods are captured, so that their clients need nothing but the name of a service."""
        return self.fabric.runtime is not None

    @property
    def ports(self) -> Mapping[str, ProxyPorts]:
        """Where each proxy answers questions."""
        return self.programs.ports

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Lab]:
        """Start everything, wait until it is ready, stop it at the end of the context.

        Raises :class:`LabError` with the end of its log when a program does not become ready or ends by itself.
        """
        try:
            with self.fabric.lay_out(self.plan):
                async with asyncio.TaskGroup() as self._watchers:
                    try:
                        await self._start()
                        yield self
                    finally:
                        await self._stop()
        except BaseExceptionGroup as failures:
            # The first failure is the cause; what follows from it is of no use to the reader.
            raise failures.exceptions[0] from None

    # -- asking the proxies ------------------------------------------------------------------------------------

    async def dump(self, proxy: str) -> dict[str, Any]:
        """The admin dump of a proxy."""
        ports = self.ports[proxy]
        answer: dict[str, Any] = json.loads(await get(self.fabric, ports.where, ports.admin, "/config_dump"))
        return answer

    def log_size(self, node: str) -> int:
        """A mark in the log of a node's proxy, for :meth:`access_record`."""
        return self._running[node].program.log.stat().st_size

    async def access_record(
        self, node: str, since: int, wanted: Callable[[Mapping[str, Any]], bool]
    ) -> Mapping[str, Any]:
        """The first access-log record after a mark that ``wanted`` accepts; waits for it."""
        found: list[Mapping[str, Any]] = []

        async def logged() -> bool:
            found.extend(one for one in read_log(program.log, since, MAX_LOG_BYTES) if wanted(one))
            return bool(found)

        program = self._running[node].program
        await program.until(logged, "reporting the connection in its access log")
        return found[0]

    def pid(self, program: str) -> int | None:
        """The process id of a node's proxy or of an echo server (by its Deployment's name)."""
        return self._running[program].program.pid

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

    async def change(self, name: str, documents: Sequence[Mapping[str, Any]] | None) -> None:
        """Write (or replace) one configuration file, and wait until every proxy decides by it; None removes it."""
        before = {proxy: await self._generation(proxy) for proxy in self.ports}
        if documents is None:
            self.withdraw(name)
        else:
            self.apply(name, documents)
        async with asyncio.TaskGroup() as waiting:
            for proxy, old in before.items():
                condition = partial(self._decides_by_newer, proxy, old)
                what = "following the change of its configuration"
                waiting.create_task(self._running[proxy].program.until(condition, what))

    async def until_policies(self, wanted: Callable[[set[str]], bool]) -> None:
        """Wait until the policies (``namespace/name``) of every proxy are as wanted."""
        for node in self.plan.nodes:

            async def follows(name: str = node.name) -> bool:
                policies = (await self.dump(name))["policies"]
                return wanted({f"{one['namespace']}/{one['name']}" for one in policies})

            await self._running[node.name].program.until(follows, "following the change of its configuration")

    # -- entering and observing the mesh ---------------------------------------------------------------------

    def entry(self, client: PodPlan, service: ServicePlan) -> Entry:
        """Where to connect in order to reach the first port of a service as a client."""
        return next(one for one in self.entries if one.client == client and one.host == service.hostname)

    def call(
        self, client: PodPlan, service: ServicePlan, *, by_name: bool = False
    ) -> AbstractAsyncContextManager[Conversation]:
        """A connection of a client to the first port of a service.

        ``by_name`` it is what a person types where clients are captured, and a SOCKS5 request elsewhere.
        """
        entry = self.entry(client, service)
        if by_name and self.captured:
            return typed(self.fabric.in_pod(client, telnet_command(entry.host, entry.host_port)))
        if by_name:
            return talk(entry.host, entry.host_port, through_socks5=(client.ip, SOCKS5_PORT))
        return talk(entry.ip, entry.port, sock=self.socket(client.name))

    def socket(self, where: str = OUTSIDE, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A TCP socket as a program in a pod or on a node (by its name) would get one."""
        return self.fabric.inside(where, partial(socket.socket, family, socket.SOCK_STREAM))

    def peers(self, server: PodPlan) -> set[str]:
        """The addresses that a captured server sees at the other end of its connections at this moment."""
        return self.fabric.inside(server.name, partial(peers_of, server.echoes[0].ports[0]))

    @contextlib.contextmanager
    def watch(self, *secrets: str) -> Iterator[Watch]:
        """A :class:`Watch` over all that passes between proxies until the end of the context."""
        watch = Watch(tuple(secret.encode() for secret in secrets))
        with ExitStack() as open_watches:
            for observer in self.observers:
                open_watches.enter_context(observer.watch(watch))
            yield watch

    # -- inside ------------------------------------------------------------------------------------------------

    async def start(self, *programs: Started) -> None:
        """Start programs and wait until they are ready."""
        for one in programs:
            self._running[one.program.name] = one
            await one.program.start()
        async with asyncio.TaskGroup() as waiting:
            for one in programs:
                waiting.create_task(one.program.until(one.condition, one.what))
        for one in programs:
            self._watchers.create_task(one.program.watch())

    async def again(self, name: str) -> None:
        """Start a program that was killed, as it was."""
        await self.start(self._running[name])

    async def kill(self, name: str) -> None:
        """End a program with SIGKILL."""
        await self._running[name].program.kill()

    async def _start(self) -> None:
        self.programs.logs.mkdir(parents=True)
        CaDirectory(self.authority).create(DEFAULT_TRUST_DOMAIN, now=datetime.now(UTC))
        self.apply("mesh", self.plan.objects)
        for observer in self.observers:
            await observer.start()
        await self.start(*self.programs.of_mesh(self._companions))

    async def _stop(self) -> None:
        await asyncio.gather(*(one.program.stop() for one in self._running.values()))
        for observer in self.observers:
            await observer.close()

    async def _generation(self, proxy: str) -> int:
        return int((await self.dump(proxy))["generation"])

    async def _decides_by_newer(self, proxy: str, old: int) -> bool:
        loaded = await self._generation(proxy)
        if loaded <= old:
            return False
        ports = self.ports[proxy]
        text = (await get(self.fabric, ports.where, ports.metrics, "/metrics")).decode()
        # Proxies with routing report what they decide by; others decide by what is loaded.
        return all(float(one) >= loaded for one in _DECIDED_BY.findall(text))
