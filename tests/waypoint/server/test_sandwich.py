"""A waypoint behind a node proxy: clients come with a PROXY protocol header, which only the pod itself may send."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from tests.peers.traffic import Address
from tests.waypoint.server.ground import SERVICE_PORT, VIPS, Ground, ask, gateway, logged, sample
from ztun.net.proxy_protocol import SIGNATURE, proxy_v2_header

pytestmark = pytest.mark.net

PORT = 15088
VIP = (VIPS["echo-server-2"], SERVICE_PORT)
CLIENT = ("10.9.9.9", 41234)
DENIED = "telnet-client-foo"


def denial() -> Mapping[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "no-foo", "namespace": "default"},
        "spec": {
            "targetRefs": [
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"},
            ],
            "action": "DENY",
            "rules": [{"from": [{"source": {"namespaces": ["foo"]}}]}],
        },
    }


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("sandwich")) as ground:
        ground.gateway = gateway(**{"ambient.istio.io/waypoint-inbound-binding": f"PROXY/{PORT}"})
        ground.rules = [denial()]
        ground.more_nodes = ["middle"]
        ground.start()
        yield ground


def talk(ground: Ground, first: bytes, *, source: str | None = None, rest: bytes = b"test\n") -> bytes:
    """What the waypoint answers to raw bytes, all of it; empty when it closes or resets."""
    ip = ground.waypoint_pod.ip
    answer = b""
    with contextlib.suppress(ConnectionError), socket.socket() as wire:
        wire.settimeout(20)
        wire.bind((source or ip, 0))
        wire.connect((ip, PORT))
        wire.sendall(first)
        wire.sendall(rest)
        wire.shutdown(socket.SHUT_WR)
        while data := wire.recv(4096):
            answer += data
    return answer


def header(destination: Address, name: str = "telnet-client", namespace: str = "default") -> bytes:
    identity = SpiffeId(DEFAULT_TRUST_DOMAIN, namespace, name)
    return proxy_v2_header(CLIENT, destination, str(identity))


@pytest.mark.asyncio
async def test_the_node_proxy_in_front_tells_who_the_client_is(ground: Ground) -> None:
    assert await ask(ground.entries["telnet-client", "echo-server-2"]) == "hello-2 test"
    record = await logged(ground.waypoint, lambda one: one.get("src.workload") == "telnet-client")
    assert record["src.identity"] == "spiffe://cluster.local/ns/default/sa/telnet-client"
    assert record["dst.workload"] == "second"


@pytest.mark.asyncio
async def test_policies_judge_the_identity_in_the_header(ground: Ground) -> None:
    assert await ask(ground.entries[DENIED, "echo-server-2"]) is None
    await logged(ground.waypoint, lambda one: one.get("error.code") == "policy_rejection")


def test_the_pod_itself_may_send_headers(ground: Ground) -> None:
    assert talk(ground, header(VIP)) == b"hello-2 test\n"
    assert talk(ground, header(VIP, DENIED, "foo")) == b""


def test_what_follows_the_header_in_the_same_segment_is_forwarded(ground: Ground) -> None:
    assert talk(ground, header(VIP) + b"at ", rest=b"once\n") == b"hello-2 at once\n"


def test_a_header_may_come_byte_by_byte(ground: Ground) -> None:
    with socket.socket() as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.settimeout(20)
        wire.bind((ground.waypoint_pod.ip, 0))
        wire.connect((ground.waypoint_pod.ip, PORT))
        for byte in header(VIP) + b"slow\n":
            wire.sendall(bytes([byte]))
        assert wire.recv(100) == b"hello-2 slow\n"


def test_nobody_else_may(ground: Ground) -> None:
    before = sample(ground.waypoint, "ztun_connection_failures_total", code="untrusted_proxy")
    assert talk(ground, header(VIP), source=ground.block.take()) == b""
    assert sample(ground.waypoint, "ztun_connection_failures_total", code="untrusted_proxy") == before + 1


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        SIGNATURE + b"\x20\x00\x00\x00",
        SIGNATURE + b"\x21\x11\x00\x04abcd",
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE,
        header(("192.0.2.1", 80)),
        header((VIP[0], 80)),
        proxy_v2_header(CLIENT, VIP, "spiffe://cluster.local/not-an-identity"),
    ],
    ids=["http", "local", "short", "long", "cut", "foreign", "no such port", "identity"],
)
def test_anything_else_is_closed_without_an_answer(ground: Ground, first: bytes) -> None:
    assert talk(ground, first, rest=b"") == b""
    assert talk(ground, header(VIP)) == b"hello-2 test\n"


def test_without_an_identity_the_client_is_anonymous(ground: Ground) -> None:
    """Nothing is denied to the unknown here; a policy that allows somebody would refuse it."""
    written = header(VIP)
    bare = SIGNATURE + b"\x21\x11\x00\x0c" + written[16:28]
    assert talk(ground, bare) == b"hello-2 test\n"
