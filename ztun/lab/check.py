"""Does the mesh do what it promises? Every row is one thing that was done and what was seen of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from ztun.lab.client import Conversation
from ztun.lab.lab import Lab
from ztun.lab.tap import Watch
from ztun.lab.topology import PodPlan, ServicePlan

DENIAL = "deny-foo"
DENIED_NAMESPACE = "foo"
TOKEN_BYTES = 6  # random, so that it is found on the wire only if it was sent readable


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; it is right when there are no ``faults``."""

    client: str
    target: str
    answer: str
    server: str = ""
    wire: str = ""
    source: str = ""
    destination: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls what, by which way in, and the word that the answer must begin with."""

    client: tuple[str, str]
    service: tuple[str, str]
    says: str
    by_name: bool = False


CALLS = (
    Call(("default", "telnet-client"), ("default", "echo-server"), "hello"),
    Call(("default", "telnet-client"), ("default", "echo-server-2"), "hello-2"),
    Call(("default", "telnet-client-2"), ("default", "echo-server"), "hello"),
    Call(("foo", "telnet-client-foo"), ("default", "echo-server"), "hello"),
    Call(("foo", "telnet-client-foo"), ("default", "echo-server-2"), "hello-2", by_name=True),
)


async def check(lab: Lab) -> AsyncIterator[Row]:
    """Drive connections through the mesh, then change a policy under them."""
    for call in CALLS:
        yield await call_row(lab, call)
    async for row in _policy(lab):
        yield row


async def call_row(lab: Lab, call: Call) -> Row:
    """Make one call, and compare everything that is seen of it with what it has to be."""
    client, service = lab.plan.pod(*call.client), lab.plan.service(*call.service)
    word = f"test-{secrets.token_hex(TOKEN_BYTES)}"
    marks = {node.name: lab.log_size(node.name) for node in lab.plan.nodes}
    seen: dict[str, set[str]] = {}
    with lab.watch(word) as watch:
        async with lab.call(client, service, by_name=call.by_name or lab.captured) as conversation:
            answer = await conversation.ask(word)
            if lab.captured:
                seen = {pod.name: lab.peers(pod) for pod in lab.plan.servers}
    faults = list(watch.faults)
    if answer != f"{call.says} {word}":
        faults.append(f"expected {call.says + ' ' + word!r}")
        return _row(lab, client, service, answer, watch, "", {}, faults)
    outbound = await lab.access_record(
        client.node, marks[client.node], lambda one: _is(one, "outbound", "src.workload", client.name)
    )
    server = next(pod for pod in lab.plan.servers if pod.name == outbound.get("dst.workload"))
    inbound = await lab.access_record(
        server.node,
        marks[server.node],
        lambda one: (
            _is(one, "inbound", "dst.workload", server.name) and one.get("src.workload") == client.name
        ),
    )
    for end, pod in (("src", client), ("dst", server)):
        identity = f"spiffe://cluster.local/ns/{pod.namespace}/sa/{pod.service_account}"
        for side, record in (("source", outbound), ("destination", inbound)):
            said = record.get(f"{end}.identity")
            if said != identity:
                faults.append(f"the {side} proxy says {end}.identity {said}, expected {identity}")
    note = f"answered by {client_text(server)}"
    if lab.captured:
        expected = " or ".join(client.addresses)
        note += f"\n   which saw {', '.join(sorted(seen[server.name])) or 'nobody'}"
        if not seen[server.name] or not seen[server.name] <= set(client.addresses):
            faults.append(f"the server {server.label} should have seen {expected}")
    return _row(lab, client, service, answer, watch, note, inbound, faults)


async def _policy(lab: Lab) -> AsyncIterator[Row]:
    """A client is denied while its connection is open, others are not, and the denial can be taken back."""
    denied = lab.plan.pod(DENIED_NAMESPACE, "telnet-client-foo")
    allowed = Call(("default", "telnet-client"), ("default", "echo-server"), "hello")
    service = lab.plan.service("default", "echo-server")
    async with lab.call(denied, service, by_name=lab.captured) as conversation:
        before = await conversation.ask("before")
        lab.apply(DENIAL, [denial()])
        await lab.until_policies(lambda names: f"default/{DENIAL}" in names)
        yield await _cut(lab, denied, service, before, conversation)
    marks = {pod.node: lab.log_size(pod.node) for pod in lab.plan.servers}
    async with lab.call(denied, service, by_name=lab.captured) as conversation:
        answer = await conversation.ask("denied")
    faults = [] if answer is None else ["expected no answer"]
    if answer is None:
        server = lab.plan.pod("default", "echo-server-prod")
        refusal = await lab.access_record(
            server.node, marks[server.node], lambda one: one.get("direction") == "inbound" and "error" in one
        )
        if f"default/{DENIAL}" not in str(refusal["error"]):
            faults.append(f"the destination proxy says {refusal['error']!r}")
    yield Row(
        client_text(denied), _target(lab, service), _answer(answer, "denied by policy"), faults=tuple(faults)
    )
    yield await call_row(lab, allowed)
    lab.withdraw(DENIAL)
    await lab.until_policies(lambda names: f"default/{DENIAL}" not in names)
    yield await call_row(lab, Call((denied.namespace, denied.owner), ("default", "echo-server"), "hello"))


async def _cut(
    lab: Lab, client: PodPlan, service: ServicePlan, before: str | None, conversation: Conversation
) -> Row:
    faults = []
    if before != "hello before":
        faults.append("the connection did not work before the policy came")
    cut = await conversation.closed()
    if not cut:
        faults.append("the open connection was not closed by the policy")
    answer = "open connection cut by policy" if cut else "connection still open"
    return Row(client_text(client), _target(lab, service), answer, faults=tuple(faults))


def denial() -> Mapping[str, Any]:
    """The AuthorizationPolicy that the check applies."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": DENIAL, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "echo-server"}},
            "action": "DENY",
            "rules": [{"from": [{"source": {"namespaces": [DENIED_NAMESPACE]}}]}],
        },
    }


def _is(record: Mapping[str, Any], direction: str, key: str, name: str) -> bool:
    return record.get("direction") == direction and record.get(key) == name


def _row(
    lab: Lab,
    client: PodPlan,
    service: ServicePlan,
    answer: str | None,
    watch: Watch,
    server: str,
    record: Mapping[str, Any],
    faults: list[str],
) -> Row:
    chosen = sorted(f"{hello.version}\n{hello.cipher}" for hello in watch.hellos if hello is not None)
    return Row(
        client_text(client),
        _target(lab, service),
        _answer(answer, "closed without an answer"),
        server,
        "\n".join(chosen) or "nothing readable as TLS",
        record.get("src.identity", ""),
        record.get("dst.identity", ""),
        tuple(faults),
    )


def _answer(answer: str | None, closed: str) -> str:
    return closed if answer is None else answer


def client_text(pod: PodPlan) -> str:
    """Who calls, and from where."""
    return f"{pod.label} on {pod.node}"


def _target(lab: Lab, service: ServicePlan) -> str:
    host, port = service.hostname, service.ports[0]
    return f"telnet {host} {port}" if lab.captured else f"{host}:{port}"
