"""Engines are found as installed plug-ins, and what is wrong with one is said by name."""

from __future__ import annotations

import importlib
import random
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from ztun.errors import ConfigError
from ztun.mesh.model import Service, ServicePort, Vip, Workload
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.routing import (
    ENGINE_GROUP,
    Action,
    Connection,
    Hop,
    HopKind,
    RoutingEngine,
    engine_names,
    load_engine,
)

pytestmark = pytest.mark.unit

PLUGIN = Path(__file__).parents[2] / "compose" / "examples" / "engine-plugin"
Install = Callable[[dict[str, str], str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Lay packages out as an installer does: modules, and a dist-info with entry points."""
    before = set(sys.modules)

    def lay_out(entry_points: dict[str, str], source: str) -> None:
        info = tmp_path / "some_engine-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-engine\nVersion: 1.0.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{ENGINE_GROUP}]", *lines]) + "\n")
        module = next(iter(entry_points.values())).partition(":")[0]
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    yield lay_out
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def a_mesh() -> Snapshot:
    host = "echo.default.svc.cluster.local"
    key = ("default", host)
    pods = [
        Workload(
            uid=version,
            name=version,
            namespace="default",
            addresses=(ip,),
            labels=MappingProxyType({"version": version}),
            services=MappingProxyType({key: MappingProxyType({19000: 9000})}),
        )
        for version, ip in (("prod", "10.0.1.11"), ("gray", "10.0.1.12"))
    ]
    ports = MappingProxyType({19000: ServicePort(19000, 9000, "tcp", "TCP")})
    service = Service("echo", "default", host, (Vip("", "192.168.58.10"),), ports)
    return build_snapshot(workloads=pods, services=[service], policies=())


def test_the_sample_plug_in_decides(install: Install) -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    entry_points = project["entry-points"][ENGINE_GROUP]
    install(entry_points, (PLUGIN / "canary_engine.py").read_text())

    engine = load_engine("canary")
    assert isinstance(engine, RoutingEngine)
    assert "canary" in engine_names()
    router = engine.router(a_mesh())
    for labels, expected in (({"canary": "true"}, "gray"), ({}, "prod")):
        connection = Connection("192.168.58.10", 19000, source_labels=labels)
        decision = router.decide(connection, Hop(HopKind.CLIENT, "default"), random.Random(1))
        assert decision.action is Action.ROUTE
        assert decision.chosen is not None
        assert [one.workload.name for one in decision.chosen.endpoints] == [expected]
        assert not decision.refused


def test_an_unknown_engine_is_named_with_the_known_ones(install: Install) -> None:
    install({"known": "known_engine:Engine"}, "")
    with pytest.raises(ConfigError, match="'missing'") as raised:
        load_engine("missing")
    assert raised.value.code == "unknown_engine"
    assert "known" in raised.value.hint


def test_an_engine_that_does_not_load_is_named(install: Install) -> None:
    install({"broken": "broken_engine:Engine"}, "raise RuntimeError('no licence')")
    with pytest.raises(ConfigError, match=r"'broken'.*no licence") as raised:
        load_engine("broken")
    assert raised.value.code == "engine_load"


def test_something_else_is_not_an_engine(install: Install) -> None:
    install({"odd": "odd_engine:Engine"}, "class Engine: pass")
    with pytest.raises(ConfigError, match="'odd'") as raised:
        load_engine("odd")
    assert raised.value.code == "engine_contract"


def test_the_engines_that_ship_are_where_their_entry_points_say() -> None:
    project = tomllib.loads((PLUGIN.parents[2] / "pyproject.toml").read_text())["project"]
    shipped = project["entry-points"][ENGINE_GROUP]
    assert {"ambient", "sidecar"} <= set(shipped)
    for name, value in shipped.items():
        module, _, attribute = value.partition(":")
        engine = getattr(importlib.import_module(module), attribute)()
        assert isinstance(engine, RoutingEngine)
        assert engine.name == name
