"""What only captured pods can show: strangers in plaintext, and what is on the wire between the nodes."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ztun.lab.check import TOKEN_BYTES, Call, Row, call_row, client_text
from ztun.lab.client import talk
from ztun.lab.lab import Lab
from ztun.lab.tap import Watch
from ztun.lab.topology import PodPlan
from ztun.resources.schema import DATAPLANE_MODE

STRANGER = ("outside", "stranger")
STRICT = "strict"
SERVER = ("default", "echo-server-prod")


async def check_strangers(lab: Lab) -> AsyncIterator[Row]:
    """A pod without a proxy is let in as long as plaintext is allowed, and the server sees its address."""
    outsider, server = lab.plan.pod(*STRANGER), lab.plan.pod(*SERVER)
    word = f"test-{secrets.token_hex(TOKEN_BYTES)}"
    answer, seen = await _plaintext(lab, outsider, server, word)
    faults = [] if answer == f"hello {word}" else [f"expected {'hello ' + word!r} while plaintext is allowed"]
    if outsider.ip not in seen:
        faults.append(f"the server should have seen {outsider.ip}")
    note = f"which saw {', '.join(sorted(seen)) or 'nobody'}"
    yield _row(outsider, server, answer or "closed without an answer", note, faults)
    await lab.change(STRICT, [strict()])
    answer, _ = await _plaintext(lab, outsider, server, word)
    faults = [] if answer is None else [f"STRICT, but the answer was {answer!r}"]
    yield _row(outsider, server, "refused: mutual TLS is STRICT" if answer is None else answer, "", faults)
    yield await call_row(lab, Call(("default", "telnet-client"), ("default", "echo-server"), "hello"))
    await lab.change(STRICT, None)
    answer, _ = await _plaintext(lab, outsider, server, word)
    faults = [] if answer == f"hello {word}" else ["expected an answer after STRICT was taken back"]
    yield _row(outsider, server, answer or "closed without an answer", "", faults)


def wire_row(lab: Lab, watch: Watch) -> Row:
    """What passed between the nodes during a whole check."""
    faults = [fault for fault in watch.faults if fault]
    if not watch.packets_between_nodes:
        faults.append("no packet was seen between the nodes")
    nodes = " and ".join(node.name for node in lab.plan.nodes)
    answer = f"{watch.packets_between_nodes} packets\n{len(watch.tunnels)} tunnels seen"
    wire = "nothing but TLS 1.3\non port 15008" if not faults else "not TLS alone"
    return Row(f"between {nodes}", "everything above", answer, wire=wire, faults=tuple(faults))


async def _plaintext(lab: Lab, outsider: PodPlan, server: PodPlan, word: str) -> tuple[str | None, set[str]]:
    """What a server answers somebody who knows nothing of the mesh, and whom it saw."""
    port = server.echoes[0].ports[0]
    try:
        async with talk(server.ip, port, sock=lab.socket(outsider.name)) as conversation:
            return await conversation.ask(word), lab.peers(server)
    except ConnectionError:
        return None, set()


def _row(outsider: PodPlan, server: PodPlan, answer: str, note: str, faults: list[str]) -> Row:
    target = f"{server.ip}:{server.echoes[0].ports[0]}, in plaintext"
    note = "\n   ".join(filter(None, (f"which is {client_text(server)}", note)))
    return Row(f"{client_text(outsider)}, no proxy", target, answer, note, faults=tuple(faults))


def stranger() -> Mapping[str, Any]:
    """The Deployment of a pod that is not in the mesh."""
    namespace, name = STRANGER
    labels = {"app": name, DATAPLANE_MODE: "none"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": []}}},
    }


def strict() -> Mapping[str, Any]:
    """The PeerAuthentication that the check applies."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "default"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
