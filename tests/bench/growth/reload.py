"""What a reload takes, what traffic feels of it, and what the state weighs, while the mesh grows.

A file with the mesh is replaced under a running proxy, once with one changed object and once with every object
changed, at the source and then at the destination. Meanwhile a client sends 64 bytes and waits for the answer, again
and again, and the event loop of the proxy times itself.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.bench.documents import as_text, replace_file
from tests.bench.growth.crowd import mesh as crowd
from tests.bench.growth.crowd import workloads
from tests.bench.growth.scale import Scale
from tests.bench.growth.series import Panel
from tests.bench.growth.watched import longest_lag
from tests.bench.load import PAYLOAD
from tests.bench.paths import SIDES, Mesh, MeshPath
from tests.peers.traffic import Address, dial, read_exactly

GOAL_SECONDS = 2.0
GOAL_STALL_MILLISECONDS = 20.0
GROWING = "workloads (a tenth as many services and policies)"
LOADED = "configuration loaded"
POLL_SECONDS = 0.005
AFTER_SECONDS = 1.0  # after the new state is in force its predecessor is let go; that must not be felt either
CALM_SECONDS = 3.0
LOAD_SECONDS = 120.0
ONE, ALL = "one object changed", "all objects changed"


@dataclass
class Pinger:
    """A client that sends 64 bytes and waits for them, all the time, in a thread. ``trips`` are (end, seconds)."""

    address: Address
    trips: list[tuple[float, float]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._connection = dial(self.address)
        self._connection.sendall(b"echo\n" + PAYLOAD)
        read_exactly(self._connection, len(PAYLOAD))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            self._connection.sendall(PAYLOAD)
            read_exactly(self._connection, len(PAYLOAD))
            now = time.monotonic()
            self.trips.append((now, now - before))

    def longest(self, begin: float, end: float) -> float:
        """The longest round trip in seconds that touches an interval."""
        return max((took for at, took in self.trips if at > begin and at - took < end), default=0.0)


@dataclass(frozen=True, slots=True)
class Reload:
    """One of them, in seconds: until the state was in force, and the longest waits meanwhile and just after."""

    seconds: float
    client_stall: float
    loop_stall: float


def measure(mesh: Mesh, scale: Scale) -> list[Panel]:
    """Panels of time, stalls and memory. Of both proxies the one that took longer, or weighs more, counts."""
    times = Panel("reload", "Reload of the mesh, until in force", GROWING, "s", goal=GOAL_SECONDS)
    stalls = Panel("stall", "Longest stall during a reload", GROWING, "ms", goal=GOAL_STALL_MILLISECONDS)
    memory = Panel("memory", "Memory of a proxy (RSS)", GROWING, "MiB")
    for count, pod in zip(scale.objects, mesh.extra_pods, strict=True):
        texts = Texts(count)
        with (
            mesh.ztun(pod, tag=f"reload-{count}", documents=crowd(count), watched=True) as path,
            Pinger(path.echo) as pinger,
        ):
            started = max(proxy.rss_bytes() for proxy in path.proxies)
            memory.line("after the start").add(count, _mebibytes(started))
            begin = time.monotonic()
            time.sleep(CALM_SECONDS)
            calm = pinger.longest(begin, time.monotonic())
            stalls.line("a client, no reload").add(count, calm * 1e3)
            for _ in range(scale.rounds):
                for name in (ONE, ALL):
                    seen = [_reload(path, side, texts.next(name, side), pinger) for side in range(len(SIDES))]
                    times.line(name).add(count, max(one.seconds for one in seen))
                    stalls.line(f"a client, {name}").add(count, max(one.client_stall for one in seen) * 1e3)
                    stalls.line(f"the event loop, {name}").add(
                        count, max(one.loop_stall for one in seen) * 1e3
                    )
            rss = max(proxy.rss_bytes() for proxy in path.proxies)
            peak = max(proxy.peak_rss_bytes() for proxy in path.proxies)
            memory.line("after the reloads").add(count, _mebibytes(rss))
            memory.line("highest").add(count, _mebibytes(peak))
    return [times, stalls, memory]


class Texts:
    """The next text for each side. Written before the clock runs; a version is a label of every object."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._versions = [1, 1]
        self._changes = 0

    def next(self, name: str, side: int) -> str:
        """A text that differs from the last one of that side in one object, or in all of them."""
        self._changes += 1
        if name == ALL:
            self._versions[side] += 1
        one = next(workloads(1, f"change-{self._changes}"))
        documents = list(crowd(self._count, f"v{self._versions[side]}"))
        place = next(index for index, document in enumerate(documents) if document["kind"] == "Pod")
        documents[place] = one
        return as_text(documents)


def _reload(path: MeshPath, side: int, text: str, pinger: Pinger) -> Reload:
    proxy, log = path.proxies[side], path.proxies[side].log
    before = log.stat().st_size

    def loaded() -> bool:
        with log.open("rb") as file:
            file.seek(before)
            return LOADED.encode() in file.read()

    begin = time.monotonic()
    replace_file(path.configs[side] / "more.yaml", text)
    while not loaded():
        if not proxy.running or time.monotonic() - begin > LOAD_SECONDS:
            raise TimeoutError(f"{proxy.name} did not load the changed mesh: {proxy.log_tail()}")
        time.sleep(POLL_SECONDS)
    in_force = time.monotonic()
    time.sleep(AFTER_SECONDS)
    end = time.monotonic()
    return Reload(in_force - begin, pinger.longest(begin, end), longest_lag(path.lags[side], begin, end))


def _mebibytes(count: int) -> float:
    return count / 1024**2
