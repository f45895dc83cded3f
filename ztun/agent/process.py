"""The agent as a process: log, sockets, the loop, and an end that leaves the rules where they are."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ztun.agent.agent import Agent
from ztun.agent.commands import Commands
from ztun.agent.control import ControlSocket
from ztun.agent.enrolments import StateDirectory
from ztun.agent.places import DEFAULT_CONTROL, DEFAULT_STATE, DEFAULT_UDS, NAMED_NAMESPACES
from ztun.agent.pod_documents import PodDocuments, changes
from ztun.proxy.descriptors import raise_descriptor_limit
from ztun.sources.watching import POLL_SECONDS
from ztun.telemetry.levels import Levels
from ztun.telemetry.logging import Logging, get_logger
from ztun.telemetry.writer import LineWriter

_log = get_logger("agent")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything an agent is told."""

    directory: Path | None = None
    """Pod documents; without it pods come by command only."""
    node: str = ""
    """Leave out Pod documents that name another node."""
    uds: Path = DEFAULT_UDS
    control: Path = DEFAULT_CONTROL
    state: Path = DEFAULT_STATE
    dns: bool = True
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"


def run(settings: AgentSettings) -> int:
    """Run an agent until SIGTERM or SIGINT; gives the exit code. Raises :class:`ConfigError`."""
    import uvloop

    raise_descriptor_limit()  # each pod takes two
    return uvloop.run(_logged(settings))


async def _logged(settings: AgentSettings) -> int:
    writer = LineWriter(sys.stdout.buffer, style=settings.log_format)
    logs = Logging(writer, style=settings.log_format, levels=Levels(settings.log_level))
    writer.start()
    logs.install()
    try:
        return await serve(settings)
    finally:
        logs.close()
        writer.close()


async def serve(settings: AgentSettings, stop: asyncio.Event | None = None) -> int:
    """Serve until ``stop`` is set or a signal comes. Raises :class:`ConfigError`."""
    loop = asyncio.get_running_loop()
    if stop is None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    documents = None
    if settings.directory is not None:
        documents = PodDocuments(settings.directory, node=settings.node, dns=settings.dns)
    state = StateDirectory(settings.state)
    state.lock()
    agent = Agent(state, settings.uds, documents)
    control = ControlSocket(settings.control, Commands(agent).handle)
    failed = False
    tasks: list[asyncio.Task[None]] = []

    async def must_not_end(work: Coroutine[None, None, None]) -> None:
        nonlocal failed
        try:
            await work
        except Exception as error:
            _log.error("background task failed, shutting down", exc_info=error)
            failed = True
            stop.set()

    try:
        await agent.open()
        await control.open()
        tasks += [loop.create_task(must_not_end(work)) for work in (agent.run(), _watch(agent, documents))]
        _log.info(
            "agent started", uds=str(settings.uds), control=str(settings.control), pods=len(agent.members)
        )
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await control.close()
        await agent.close()
        state.unlock()
    _log.info("agent ended; the rules of its pods stay", pods=len(agent.members))
    return 1 if failed else 0


async def _watch(agent: Agent, documents: PodDocuments | None) -> None:
    """Wake the agent when a document or a named namespace changes."""
    while True:
        watched = await asyncio.to_thread(_directories, documents)
        if not watched:
            return  # the agent looks by itself from time to time
        try:
            async for _ in changes(watched):
                agent.wake()
                if await asyncio.to_thread(_directories, documents) != watched:
                    break
        # one of them went away just now, or the kernel has no watches left; a group is what the watching thread raises
        except (OSError, RuntimeError, ExceptionGroup) as error:
            _log.debug("directories cannot be watched", error=str(error))
            await asyncio.sleep(POLL_SECONDS)


def _directories(documents: PodDocuments | None) -> set[Path]:
    found = documents.directories() if documents is not None else set()
    return found | ({NAMED_NAMESPACES} if NAMED_NAMESPACES.is_dir() else set())
