"""The examples of routing on live traffic: which server answers whom under which rule, in either mode."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from statistics import NormalDist
from typing import Any, Protocol

from ztun.lab.client import Conversation, talk
from ztun.lab.page_mesh import (
    CLIENTS,
    GATEWAY_NAMESPACE,
    GATEWAYS,
    MODES,
    Documents,
    example,
    name_in,
    text_of,
)
from ztun.lab.process import LabError
from ztun.lab.topology import MeshPlan, PodPlan, ServicePlan

SERVICE = ("default", "echo-server")
SERVICE_PORT = 19000
FIRST, SECOND, GRAY, CLOSED = "hello", "hello-2", "hello-gray", "closed"
EVEN_SHARE = 0.5  # of two pods without weights
CANARY_SHARE = 0.2  # of the weights 80 and 20
SPLIT_CONNECTIONS = 1000  # per mode
FEW_CONNECTIONS = 200  # where half each is told from 80:20
CLOSED_CONNECTIONS = 10  # an endpoint that answers now and then would show
AT_ONCE = 32
SIGMAS = 4.0  # a right split is called wrong once in 16,000 runs
CONFIDENCE = 0.95
ANALYZE_SECONDS = 60.0
RULES = "rules"  # the file of the configuration that is replaced for every example


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer: under which rule, to whom, in which mode; ``expected`` is what it has to be."""

    example: str
    client: str
    mode: str
    answer: str
    expected: str
    right: bool


@dataclass(frozen=True, slots=True)
class Split:
    """How many of the connections reached the canary version."""

    mode: str
    canary: int
    connections: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share (Wilson score)."""
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        n, share = self.connections, self.canary / self.connections
        middle = share + z * z / (2 * n)
        spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return (middle - spread) / scale, (middle + spread) / scale

    @property
    def right(self) -> bool:
        """Whether independent draws of the configured weight may give this count."""
        return is_share(self.canary, self.connections, CANARY_SHARE)


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a match, the file of its example, who is matched, and what the page says of each mode."""

    name: str
    file: str
    matched: frozenset[str]
    counts_in: tuple[str, ...] = ("sidecar",)


ATTRIBUTES = (
    Attribute("destinationSubnets", "destinationSubnets", frozenset(name for _, name in CLIENTS)),
    Attribute("port", "port", frozenset(name for _, name in CLIENTS)),
    Attribute("sourceLabels", "sourceLabels", frozenset({"telnet-client"})),
    Attribute("sourceNamespace", "source-namespace", frozenset({"telnet-client-foo"})),
)
SUPPORTED = {
    **{(one.name, mode): mode in one.counts_in for one in ATTRIBUTES for mode in MODES},
    **{(name, mode): True for name in ("gateways", "weights") for mode in MODES},
}
MISTAKES = {  # example as printed: its files, and the findings that have to be among those of the analyzer
    "destinationSubnets": (("destinationSubnets",), {"AMB-MATCH-SUBNETS"}),
    "port": (("port",), {"AMB-MATCH-PORT"}),
    "sourceLabels": (("sourceLabels",), {"AMB-MATCH-LABELS"}),
    "sourceNamespace": (("source-namespace",), {"AMB-MATCH-NAMESPACE"}),
    "weights": (("echoserver-vs", "echoserver-dr"), {"PROTO-HTTP-ON-TCP", "IST0174"}),
}


@dataclass(slots=True)
class Outcome:
    """Everything that was seen. ``supported`` is derived from answers alone: did the rule change one?"""

    rows: list[Seen] = field(default_factory=list)
    supported: dict[tuple[str, str], bool] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)
    findings: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is not as it has to be."""
        faults = [
            f"{row.example}, {row.client} ({row.mode}): {row.answer}, expected {row.expected}"
            for row in self.rows
            if not row.right
        ]
        faults += [
            f"{name} in {mode} mode: seen {'' if self.supported.get((name, mode)) else 'not '}to be supported"
            for (name, mode), expected in SUPPORTED.items()
            if self.supported.get((name, mode)) != expected
        ]
        for name, (_, codes) in MISTAKES.items():
            missing = codes - {one["code"] for one in self.findings.get(name, [])}
            faults += [f"{name} as printed: the analyzer does not report {code}" for code in sorted(missing)]
        return faults


def is_share(count: int, total: int, share: float) -> bool:
    """Whether a count lies within four standard deviations of what independent draws give."""
    return abs(count / total - share) <= SIGMAS * math.sqrt(share * (1 - share) / total)


class Ground(Protocol):
    """What the check needs of a mesh that runs, wherever it does."""

    @property
    def plan(self) -> MeshPlan:
        """Who is in it."""

    @property
    def captured(self) -> bool:
        """Whether clients call by name, knowing nothing of the mesh."""

    @property
    def configuration(self) -> Path:
        """Directory with ``mesh.yaml``, the documents of the mesh."""

    @property
    def directory(self) -> Path:
        """A directory to write to."""

    async def change(self, name: str, documents: Documents | None) -> None:
        """Write (or replace) one configuration file, and wait until every proxy decides by it; None removes it."""

    def call(
        self, client: PodPlan, service: ServicePlan, *, by_name: bool = False
    ) -> AbstractAsyncContextManager[Conversation]:
        """A connection of a client to the first port of a service."""

    def socket(self) -> socket:
        """A TCP socket of a machine outside of the mesh."""


class Described(Protocol):
    """The documents of the mesh that the examples are tried in."""

    def objects(self, *, canary: bool) -> Documents:
        """What the file ``mesh`` holds, with or without the canary version of the echo server."""


class PageCheck:
    """Goes through the examples in a running mesh."""

    def __init__(self, lab: Ground, mesh: Described, *, connections: int = SPLIT_CONNECTIONS) -> None:
        self._lab = lab
        self._mesh = mesh
        self._connections = connections
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        """Apply every example and dial. The mesh is as :func:`PageMesh.objects` gives it without the canary."""
        before = await self._answers()
        for (client, mode), answer in before.items():
            self._row("no rule", client, mode, answer, FIRST)
        for attribute in ATTRIBUTES:
            await self._attribute(attribute, before)
        await self._gateways()
        await self._weights()
        await self._analyze()
        return self._outcome

    def _row(self, example: str, client: str, mode: str, answer: str, expected: str) -> None:
        self._outcome.rows.append(Seen(example, client, mode, answer, expected, answer == expected))

    async def _answers(self) -> dict[tuple[str, str], str]:
        return {
            (name, mode): await self._ask(self._call(namespace, name, mode, by_name=True))
            for mode in MODES
            for namespace, name in CLIENTS
        }

    def _call(
        self, namespace: str, name: str, mode: str, *, by_name: bool
    ) -> AbstractAsyncContextManager[Conversation]:
        plan = self._lab.plan
        client, service = plan.pod(namespace, name_in(mode, name)), plan.service(*SERVICE)
        return self._lab.call(client, service, by_name=by_name and self._lab.captured)

    async def _ask(self, call: AbstractAsyncContextManager[Conversation]) -> str:
        """The word in front of the answer."""
        try:
            async with call as conversation:
                answer = await conversation.ask("test")
        except ConnectionError:
            answer = None
        return CLOSED if answer is None else answer.removesuffix(" test")

    async def _attribute(self, attribute: Attribute, before: Mapping[tuple[str, str], str]) -> None:
        await self._lab.change(RULES, example(f"printed/{attribute.file}"))
        seen = await self._answers()
        for (client, mode), answer in seen.items():
            matched = client in attribute.matched and mode in attribute.counts_in
            self._row(attribute.name, client, mode, answer, SECOND if matched else FIRST)
        for mode in MODES:
            self._outcome.supported[attribute.name, mode] = all(
                seen[client, mode] != before[client, mode] for client in attribute.matched
            )

    async def _gateways(self) -> None:
        await self._lab.change(
            RULES, example(*(f"manifests/{name}" for name in (*GATEWAYS, "ingressgateway-vs")))
        )
        for mode in MODES:
            answers = []
            for gateway, expected in zip(GATEWAYS, (FIRST, SECOND), strict=True):
                pod = self._lab.plan.pod(GATEWAY_NAMESPACE, name_in(mode, gateway))
                answers.append(await self._ask(talk(pod.ip, SERVICE_PORT, sock=self._lab.socket())))
                self._row("gateways", gateway, mode, answers[-1], expected)
            self._outcome.supported["gateways", mode] = len(set(answers)) > 1 and CLOSED not in answers
        for (client, mode), answer in (await self._answers()).items():
            self._row("gateways (from inside the mesh)", client, mode, answer, FIRST)

    async def _weights(self) -> None:
        await self._lab.change("mesh", self._mesh.objects(canary=True))
        vs, rule = "echoserver-vs", "echoserver-dr"
        await self._lab.change(RULES, example(f"printed/{vs}", f"printed/{rule}"))
        for mode in MODES:
            await self._until_answers(mode, GRAY)
        await self._shares("weights as printed (http)", EVEN_SHARE, FEW_CONNECTIONS)
        await self._lab.change(RULES, example(f"manifests/{vs}", f"printed/{rule}"))
        for mode in MODES:
            counts = await self._count(mode, CLOSED_CONNECTIONS)
            name = "weights as tcp, DestinationRule as printed"
            self._row(name, "telnet-client", mode, _text(counts), f"{CLOSED}: {CLOSED_CONNECTIONS}")
        await self._lab.change(RULES, [one for one in example("manifests/echo-split") if _is_rule(one)])
        await self._shares("weights over two services", CANARY_SHARE, FEW_CONNECTIONS)
        await self._lab.change(RULES, example(f"manifests/{vs}", f"manifests/{rule}"))
        for mode, counts in (
            await self._shares("weights corrected", CANARY_SHARE, self._connections)
        ).items():
            split = Split(mode, counts[GRAY], self._connections)
            self._outcome.splits.append(split)
            changed = not is_share(split.canary, split.connections, EVEN_SHARE)
            self._outcome.supported["weights", mode] = changed and not counts[CLOSED]

    async def _until_answers(self, mode: str, word: str) -> None:
        """Call until one of several servers has answered: one that has no tunnel yet gets less than its share."""
        for _ in range(FEW_CONNECTIONS):
            if await self._ask(self._call(*CLIENTS[0], mode, by_name=False)) == word:
                return

    async def _shares(self, example: str, share: float, connections: int) -> dict[str, Counter[str]]:
        seen = {}
        for mode in MODES:
            counts = seen[mode] = await self._count(mode, connections)
            both = counts[FIRST] + counts[GRAY] == connections
            right = both and is_share(counts[GRAY], connections, share)
            expected = f"{FIRST} and {GRAY}, {share:.0%} {GRAY}"
            self._outcome.rows.append(Seen(example, "telnet-client", mode, _text(counts), expected, right))
        return seen

    async def _count(self, mode: str, connections: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        left = iter(range(connections))

        async def dial() -> None:
            for _ in left:
                counts[await self._ask(self._call(*CLIENTS[0], mode, by_name=False))] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, connections)):
                group.create_task(dial())
        return counts

    async def _analyze(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(self._findings(files)) for name, (files, _) in MISTAKES.items()}
        self._outcome.findings = {name: task.result() for name, task in tasks.items()}

    async def _findings(self, files: Sequence[str]) -> list[Mapping[str, Any]]:
        """What ``waypoint analyze`` says of files as printed, in this mesh."""
        names = [f"{file}.yaml" for file in files]
        for file, name in zip(files, names, strict=True):
            (self._lab.directory / name).write_text(text_of(f"printed/{file}"))
        mesh = str(self._lab.configuration / "mesh.yaml")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "waypoint", "analyze", mesh, *names, "-o", "json"),
            cwd=self._lab.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(ANALYZE_SECONDS):
                output, errors = await child.communicate()
            found: list[Mapping[str, Any]] = json.loads(output)
        except TimeoutError:
            raise LabError("lab_timeout", f"no findings within {ANALYZE_SECONDS:.0f} s") from None
        except ValueError:
            text = errors.decode(errors="replace")
            raise LabError("lab_analyze", f"the analyzer gave no findings\n{text}".rstrip()) from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return [one for one in found if one.get("file") in names]


def _text(counts: Counter[str]) -> str:
    return ", ".join(f"{word}: {count}" for word, count in sorted(counts.items()))


def _is_rule(document: Mapping[str, Any]) -> bool:
    return bool(document["kind"] == "VirtualService")
