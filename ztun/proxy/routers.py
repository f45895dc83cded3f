"""The routing engine's view of the mesh, kept up to date beside the traffic.

A router is compiled on a worker thread. Until it is done connections are decided by the one before, and a
snapshot that the engine cannot compile leaves that one in force.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztun.errors import ConfigError, RouteError
from ztun.routing import DocumentReader
from ztun.sources.collection import collection_postponed, let_go
from ztun.telemetry.families import Family, ReadGauge
from ztun.telemetry.logging import get_logger

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from ztun.mesh.document import Problem
    from ztun.mesh.snapshot import Snapshot
    from ztun.routing import Connection, Decision, Diagnostic, Hop, Router, RoutingEngine
    from ztun.telemetry.metrics import Metrics

MAX_FINDINGS_LOGGED = 200  # per change; `waypoint analyze` lists them all
MAX_MET_REMEMBERED = 4096  # findings that connections met; beyond this they are no longer told apart


@dataclass(frozen=True, slots=True)
class _Compiled:
    router: Router
    snapshot: Snapshot
    findings: tuple[Problem, ...]
    by_code: Mapping[str, int]
    fresh: tuple[Problem, ...]
    """The findings that the one before did not have."""
    told: frozenset[tuple[str, str]]
    """Code and object of all findings."""


class CompiledRouter:
    """The newest router of one engine.

    ``load`` once at the start, ``recompile`` after each change of the mesh; ``current`` decides. What the engine
    cannot honour is logged when it is new and counted in ``ztun_routing_findings``; findings that only a decision
    can tell are logged when the first connection meets them.
    """

    def __init__(self, engine: RoutingEngine, metrics: Metrics | None = None) -> None:
        self.engine = engine
        self._compiled: _Compiled | None = None
        self._one_at_a_time = asyncio.Lock()
        # keyed by identity: routers hand out the same tuple again and again; the value keeps the id from reuse
        self._met: dict[int, tuple[Diagnostic, ...]] = {}
        self._logged: set[tuple[str, str]] = set()
        self._log = get_logger("routing")
        if metrics is not None:
            metrics.add(self._findings_gauge())
            metrics.add(self._generation_gauge())

    @property
    def current(self) -> Router:
        """The router that decides now."""
        return self._state.router

    @property
    def snapshot(self) -> Snapshot:
        """What ``current`` was compiled from."""
        return self._state.snapshot

    @property
    def findings(self) -> tuple[Problem, ...]:
        """What the engine left out or does not honour in ``snapshot``."""
        return self._state.findings

    def decide(self, connection: Connection, hop: Hop, rng: random.Random) -> Decision:
        """Ask the newest router. Raises :class:`RouteError` ``engine_error`` where it breaks its promise not to."""
        try:
            decision = self.current.decide(connection, hop, rng)
        except Exception as error:  # an engine may be anybody's
            raise self._broken(error) from error
        found = decision.diagnostics
        if found and id(found) not in self._met:
            self._report_met(found)
        return decision

    def wants_server_name(self, connection: Connection, hop: Hop) -> bool:
        """Whether a ClientHello has to be waited for. Raises as ``decide`` does."""
        try:
            return self.current.wants_server_name(connection, hop)
        except Exception as error:
            raise self._broken(error) from error

    def told(self, found: Iterable[Diagnostic]) -> None:
        """Take note of findings that were logged elsewhere; connections that meet them do not log them again."""
        self._logged.update((one.code, one.subject) for one in found)

    def load(self, snapshot: Snapshot) -> None:
        """Compile here and now, before there is traffic. Raises :class:`ConfigError` when the engine fails."""
        try:
            made = self._compile(snapshot)
        except Exception as error:  # an engine may be anybody's
            raise ConfigError(
                "engine_failed",
                f"routing engine {self.engine.name!r} cannot compile the configuration: {error!r}",
                hint="this is an error of the engine; it should leave out what it cannot read",
            ) from error
        self._take(made)

    async def recompile(self, snapshot: Snapshot) -> None:
        """Compile on a worker thread, then decide by the result. An engine that fails keeps its last router."""
        async with self._one_at_a_time:
            if self._state.snapshot is snapshot:
                return
            try:
                made = await asyncio.to_thread(self._compile, snapshot)
            except Exception as error:
                self._log.error(
                    "the routing engine failed, its last rules stay in force",
                    engine=self.engine.name,
                    exc_info=error,
                )
                return
            self._take(made)

    # -- inside ----------------------------------------------------------------------------------------------

    def _broken(self, error: Exception) -> RouteError:
        return RouteError(
            "engine_error",
            f"routing engine {self.engine.name!r} failed: {error!r}",
            hint="this is an error of the engine; the connection is closed because nobody decided on it",
        )

    def _report_met(self, found: tuple[Diagnostic, ...]) -> None:
        """Log what a connection met, once per code and object. Places are looked up on another thread."""
        if len(self._met) >= MAX_MET_REMEMBERED:
            return
        self._met[id(found)] = found
        fresh = []
        for one in found:
            about = (one.code, one.subject)
            if about not in self._logged and about not in self._state.told:
                self._logged.add(about)
                fresh.append(one)
        if fresh and len(self._logged) < MAX_MET_REMEMBERED:
            asyncio.get_running_loop().run_in_executor(None, self._log_findings, fresh)

    def _log_findings(self, found: Sequence[Diagnostic]) -> None:
        for one in found:
            self._write(one.problem())

    def _write(self, finding: Problem) -> None:
        write = {"error": self._log.error, "warning": self._log.warning}.get(finding.severity, self._log.info)
        write(str(finding), code=finding.code)

    @property
    def _state(self) -> _Compiled:
        assert self._compiled is not None, "load comes first"
        return self._compiled

    def _compile(self, snapshot: Snapshot) -> _Compiled:
        last = self._compiled
        with collection_postponed():
            router = self.engine.router(snapshot, last.router if last is not None else None)
            unread = router.problems if isinstance(router, DocumentReader) else ()
            findings = (*unread, *(one.problem() for one in router.diagnostics()))
            known = {_identity(one) for one in last.findings} if last is not None else set()
            fresh = tuple(one for one in findings if _identity(one) not in known)
            told = frozenset((one.code, one.object) for one in findings)
        return _Compiled(router, snapshot, findings, Counter(one.code for one in findings), fresh, told)

    def _take(self, made: _Compiled) -> None:
        if self._compiled is not None:
            before: list[object] = [self._compiled]
            asyncio.get_running_loop().run_in_executor(None, let_go, before)
        self._compiled = made
        self._met.clear()
        for finding in made.fresh[:MAX_FINDINGS_LOGGED]:
            self._write(finding)
        if len(made.fresh) > MAX_FINDINGS_LOGGED:
            self._log.warning(
                "more findings in the routing configuration",
                count=len(made.fresh) - MAX_FINDINGS_LOGGED,
                hint="waypoint analyze lists them all",
            )

    def _generation_gauge(self) -> Family:
        def read() -> list[tuple[tuple[str, ...], float]]:
            compiled = self._compiled
            return (
                [((self.engine.name,), float(compiled.snapshot.generation))] if compiled is not None else []
            )

        return ReadGauge(
            "ztun_routing_generation",
            "Generation of the configuration that connections are routed by (unstable)",
            ("engine",),
            read,
        )

    def _findings_gauge(self) -> Family:
        def read() -> list[tuple[tuple[str, ...], float]]:
            compiled = self._compiled
            counts = compiled.by_code if compiled is not None else {}
            return [((self.engine.name, code), float(count)) for code, count in sorted(counts.items())]

        return ReadGauge(
            "ztun_routing_findings",
            "What the routing configuration asks for and this proxy's engine does not do, by code (unstable)",
            ("engine", "code"),
            read,
        )


def _identity(finding: Problem) -> tuple[str, str, str, str]:
    """The same finding in a file where lines have moved is not new."""
    return finding.code, finding.object, finding.path, finding.message
