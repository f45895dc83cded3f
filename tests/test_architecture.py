"""The arrows between the packages hold: who imports whom, read from the source with ``ast``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent

FORBIDDEN_PACKAGES = {
    "certs": ("ztun", "waypoint"),
    "ztun": ("waypoint",),
}

# The rooms of ztun from the bottom to the top. A room imports rooms of a lower or the same number only.
ROOMS = {
    "hints": 0,
    "errors": 0,
    "mesh": 1,
    "routing": 2,
    "traffic": 2,
    "resources": 2,
    "hbone": 2,
    "telemetry": 3,
    "net": 3,
    "zds": 4,
    "sources": 3,
    "config": 4,
    "dns": 4,
    "proxy": 5,
    "agent": 5,
    "lab": 6,
    "cli": 7,
    "__main__": 8,
}

PURE_ROOMS = ("mesh", "resources", "hbone", "routing", "traffic")
# Rooms with sockets in them have pure corners.
PURE_MODULES = ("ztun.dns.zone", "ztun.dns.messages", "ztun.dns.local", "ztun.dns.memory")
IMPURE_MODULES = (
    "asyncio",
    "socket",
    "selectors",
    "ssl",
    "OpenSSL",
    "uvloop",
    "time",
    "threading",
    "subprocess",
    "signal",
    "secrets",
    "httpx",
)
# A value of these is passed in; the type may be named.
INJECTED_CALLS = {
    ("random", name)
    for name in (
        "random",
        "choice",
        "choices",
        "randint",
        "randrange",
        "shuffle",
        "uniform",
        "Random",
        "seed",
    )
} | {("datetime", "now"), ("datetime", "utcnow"), ("date", "today"), ("os", "urandom"), ("os", "environ")}

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def sources(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    own = module_name(path)
    yield from imports_of(path.read_text(), own if path.name == "__init__.py" else own.rpartition(".")[0])


def imports_of(text: str, package: str) -> Iterator[tuple[str, int]]:
    """Every module that a source text imports, at any depth, as (absolute name, line)."""
    parents = package.split(".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("package", sorted(FORBIDDEN_PACKAGES))
def test_a_package_never_imports_a_package_above_it(package: str) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(package)
        for module, line in imports(path)
        if any(inside(module, above) for above in FORBIDDEN_PACKAGES[package])
    ]
    assert not broken, "\n".join(broken)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ztun" and len(parts) > 1 else None


def test_every_room_of_ztun_has_its_place() -> None:
    found = {name for path in sources("ztun") if (name := room(module_name(path))) is not None}
    assert found <= set(ROOMS), f"say where these belong: {sorted(found - set(ROOMS))}"


def test_the_rooms_of_ztun_import_downwards_only() -> None:
    broken = []
    for path in sources("ztun"):
        own = room(module_name(path))
        if own is None:
            continue
        broken += [
            f"{path.relative_to(ROOT)}:{line} imports {module}"
            for module, line in imports(path)
            if (other := room(module)) in ROOMS and ROOMS[str(other)] > ROOMS[own]
        ]
    assert not broken, "\n".join(broken)


def pure_sources() -> list[Path]:
    return [
        path
        for path in sources("ztun")
        if room(module_name(path)) in PURE_ROOMS or module_name(path) in PURE_MODULES
    ]


def test_the_pure_corners_exist() -> None:
    assert set(PURE_MODULES) <= {module_name(path) for path in sources("ztun")}


def test_the_pure_rooms_have_no_sockets_clocks_or_threads() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in pure_sources()
        for module, line in imports(path)
        if any(inside(module, impure) for impure in IMPURE_MODULES)
    ]
    assert not broken, "\n".join(broken)


def test_the_pure_rooms_are_given_their_time_and_their_randomness() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{node.lineno} uses {node.value.id}.{node.attr}"
        for path in pure_sources()
        for node in called_or_read(path)
        if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in INJECTED_CALLS
    ]
    assert not broken, "\n".join(broken)


def called_or_read(path: Path) -> Iterator[ast.Attribute]:
    """Attribute uses outside annotations: ``rng: random.Random`` is allowed, ``random.Random()`` is not."""
    tree = ast.parse(path.read_text(), str(path))
    annotations: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            annotation = getattr(node, name, None)
            if isinstance(annotation, ast.AST):
                annotations.update(id(part) for part in ast.walk(annotation))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in annotations:
            yield node


def test_files_are_named_after_what_is_in_them() -> None:
    vague = [
        str(path.relative_to(ROOT))
        for package in ("certs", "ztun", "waypoint")
        for path in sources(package)
        if path.stem in VAGUE_NAMES
    ]
    assert not vague, "\n".join(vague)


def test_the_checks_see_imports_at_every_depth_and_relative_ones() -> None:
    text = (
        "def f():\n    import asyncio.events\n    from waypoint import engines\n    from ..net import pool\n"
    )
    assert [module for module, _ in imports_of(text, "ztun.hbone")] == [
        "asyncio.events",
        "waypoint",
        "waypoint.engines",
        "ztun.net",
        "ztun.net.pool",
    ]
