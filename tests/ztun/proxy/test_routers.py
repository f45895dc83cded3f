"""The router of an engine follows the mesh without holding up the traffic, and outlives an engine's failure."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from ztun.errors import ConfigError, RouteError
from ztun.mesh.document import Problem
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.proxy.routers import CompiledRouter
from ztun.routing import Action, Connection, Decision, Diagnostic, Hop, HopKind, Router
from ztun.telemetry.metrics import Metrics

pytestmark = pytest.mark.unit

BROKEN = "VirtualService default/broken"
RNG = random.Random(1)


class ScriptedRouter:
    def __init__(self, generation: int, codes: tuple[str, ...], met: tuple[Diagnostic, ...]) -> None:
        self.met = met
        self.generation = generation
        self.codes = codes
        self.problems = (Problem(None, BROKEN, "spec", "cannot be read"),)

    def decide(
        self, connection: Connection, hop: Hop, rng: random.Random, *, trace: bool = False
    ) -> Decision:
        if connection.destination_port == 13:
            raise RuntimeError("unlucky")
        return Decision(Action.PASSTHROUGH, diagnostics=self.met)

    def wants_server_name(self, connection: Connection, hop: Hop) -> bool:
        return 1 // (connection.destination_port - 13) > 1

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        return tuple(
            Diagnostic(code, "warning", "VirtualService default/echo", (), "") for code in self.codes
        )


class ScriptedEngine:
    name = "scripted"

    def __init__(self) -> None:
        self.codes: tuple[str, ...] = ()
        self.met: tuple[Diagnostic, ...] = ()
        self.threads: list[int] = []
        self.previous: list[Any] = []

    def router(self, snapshot: Snapshot, previous: Router | None = None) -> ScriptedRouter:
        self.threads.append(threading.get_ident())
        self.previous.append(previous)
        if snapshot.generation == 13:
            raise RuntimeError("unlucky")
        return ScriptedRouter(snapshot.generation, self.codes, self.met)


def mesh(generation: int) -> Snapshot:
    return build_snapshot(workloads=(), services=(), policies=(), generation=generation)


@pytest.mark.asyncio
async def test_a_change_is_compiled_on_another_thread_from_the_router_before() -> None:
    engine = ScriptedEngine()
    routers = CompiledRouter(engine)
    first, second = mesh(1), mesh(2)
    routers.load(first)
    before = routers.current
    await routers.recompile(second)
    assert engine.threads[0] == threading.get_ident() != engine.threads[1]
    assert engine.previous == [None, before]
    assert routers.current is not before
    assert routers.snapshot is second


@pytest.mark.asyncio
async def test_a_snapshot_that_is_compiled_is_not_compiled_again() -> None:
    engine = ScriptedEngine()
    routers = CompiledRouter(engine)
    only = mesh(1)
    routers.load(only)
    await routers.recompile(only)
    assert len(engine.threads) == 1


@pytest.mark.asyncio
async def test_an_engine_that_fails_keeps_its_last_router() -> None:
    routers = CompiledRouter(ScriptedEngine())
    routers.load(mesh(1))
    before = routers.current
    await routers.recompile(mesh(13))
    assert routers.current is before
    assert routers.snapshot.generation == 1
    await routers.recompile(mesh(14))
    assert routers.snapshot.generation == 14


@pytest.mark.asyncio
async def test_an_engine_that_fails_at_the_start_is_an_error_with_its_name() -> None:
    with pytest.raises(ConfigError, match="scripted") as caught:
        CompiledRouter(ScriptedEngine()).load(mesh(13))
    assert caught.value.code == "engine_failed"


@pytest.mark.asyncio
async def test_what_is_not_honoured_is_counted_by_code_as_it_is_now() -> None:
    engine, metrics = ScriptedEngine(), Metrics()
    routers = CompiledRouter(engine, metrics)
    assert b"ztun_routing_findings" not in metrics.render()
    engine.codes = ("AMB-MATCH-PORT", "AMB-MATCH-PORT", "AMB-TLS")
    routers.load(mesh(1))
    text = metrics.render()
    assert b'ztun_routing_findings{code="AMB-MATCH-PORT",engine="scripted"} 2.0' in text
    assert b'ztun_routing_findings{code="SCHEMA",engine="scripted"} 1.0' in text
    engine.codes = ("AMB-TLS",)
    await routers.recompile(mesh(2))
    assert b"AMB-MATCH-PORT" not in metrics.render()
    assert [one.code for one in routers.findings] == ["SCHEMA", "AMB-TLS"]


@pytest.mark.asyncio
async def test_an_engine_that_fails_to_decide_closes_the_connection() -> None:
    routers = CompiledRouter(ScriptedEngine())
    routers.load(mesh(1))
    unlucky, hop = Connection("10.0.0.1", 13), Hop(HopKind.CLIENT, "default")
    for ask in (lambda: routers.decide(unlucky, hop, RNG), lambda: routers.wants_server_name(unlucky, hop)):
        with pytest.raises(RouteError, match="scripted") as caught:
            ask()
        assert caught.value.code == "engine_error"


@pytest.mark.asyncio
async def test_what_connections_meet_is_logged_once_per_code_and_object() -> None:
    lines: list[str] = []
    engine = ScriptedEngine()
    engine.codes = ("AMB-TLS",)
    echo, other = "VirtualService default/echo", "VirtualService default/other"
    routers = CompiledRouter(engine)
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(finding: Problem) -> None:
        lines.append(f"{finding.code} {finding.object}")
        loop.call_soon_threadsafe(written.set)

    routers._write = write  # type: ignore[method-assign]
    for generation in (1, 2):
        engine.met = tuple(
            Diagnostic(code, "warning", subject, (), "")
            for code, subject in (
                ("HOSTBITS", echo),
                ("HOSTBITS", echo),
                ("AMB-TLS", echo),
                ("HOSTBITS", other),
            )
        )
        if generation == 1:
            routers.load(mesh(1))
        else:
            await routers.recompile(mesh(2))
        for port in (1, 2):
            routers.decide(Connection("10.0.0.1", port), Hop(HopKind.CLIENT, "default"), RNG)
        await written.wait()
    await asyncio.to_thread(lambda: None)
    assert sorted(lines) == sorted(
        [f"SCHEMA {BROKEN}", f"AMB-TLS {echo}", f"HOSTBITS {echo}", f"HOSTBITS {other}"]
    )
