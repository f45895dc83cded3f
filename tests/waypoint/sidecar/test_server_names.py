"""Routes by server name: a real TLS client, whose session with the server that was chosen is left alone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.authority import create_authority
from certs.request import build_request, new_key
from tests.peers.traffic import Address
from tests.waypoint.server.ground import logged
from tests.waypoint.sidecar.ground import SidecarGround
from tests.ztun.proxy.applications import Wires

pytestmark = pytest.mark.net

CLIENT = "telnet-client"
SECURE, SECURE_VIP, SECURE_PORT, SERVER_PORT = "secure", "192.168.58.20", 443, 9443
PLAIN_PORT, GREETING_PORT = 2525, 9100
SECURE_HOST = f"{SECURE}.default.svc.cluster.local"


def tls_service(name: str, vip: str, selector: Mapping[str, str]) -> Mapping[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": vip,
            "selector": dict(selector),
            "ports": [
                {"name": "tls", "port": SECURE_PORT, "targetPort": SERVER_PORT},
                {"name": "tcp-greeting", "port": PLAIN_PORT, "targetPort": GREETING_PORT},
            ],
        },
    }


RULE: Mapping[str, Any] = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "VirtualService",
    "metadata": {"name": "names", "namespace": "default"},
    "spec": {
        "hosts": [SECURE_HOST, "one.example", "*.two.example"],
        "tls": [
            {
                "match": [{"port": SECURE_PORT, "sniHosts": ["one.example"]}],
                "route": [{"destination": {"host": SECURE_HOST, "port": {"number": SECURE_PORT}}}],
            },
            {
                "match": [{"port": SECURE_PORT, "sniHosts": ["*.two.example"]}],
                "route": [{"destination": {"host": "secure-2", "port": {"number": SECURE_PORT}}}],
            },
        ],
    },
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarGround]:
    with SidecarGround(tmp_path_factory.mktemp("names")) as ground:
        ground.services = [
            tls_service(SECURE, SECURE_VIP, {"app": "echo-server", "version": "prod"}),
            tls_service("secure-2", "192.168.77.30", {"app": "echo-server-2"}),
        ]
        ground.rules = [RULE]
        # an unknown name is not passed on to an address that only a cluster has
        ground.environment = {
            "ZTUN_OUTBOUND_TRAFFIC_POLICY": "REGISTRY_ONLY",
            "UNSTABLE_ENABLE_SOCKS5": "true",
        }
        client = ground.clients[0]
        ground.forward(client, SECURE, (SECURE_VIP, SECURE_PORT))
        ground.forward(client, "greeting", (SECURE_VIP, PLAIN_PORT))
        ground.start()
        yield ground


@pytest_asyncio.fixture
async def certificates(ground: SidecarGround, tmp_path: Path) -> AsyncIterator[dict[str, bytes]]:
    """A TLS server on each of two pods that answers with what it gets; gives their certificates by pod."""
    authority = create_authority(now=datetime.now(UTC))
    found: dict[str, bytes] = {}
    async with Wires() as wires:
        for pod in (ground.prod, ground.second):
            key = new_key()
            chain = authority.sign(build_request(key, pod.identity), pod.identity, now=datetime.now(UTC))
            path = tmp_path / f"{pod.name}.pem"
            path.write_bytes(
                b"".join(
                    [
                        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                        *(one.public_bytes(Encoding.PEM) for one in chain),
                    ]
                )
            )
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            found[pod.name] = chain[0].public_bytes(Encoding.DER)
            await wires.echo(pod.ip, SERVER_PORT, tls=context)
        yield found


def trusting() -> ssl.SSLContext:
    """A client that takes any certificate; the tests look at it themselves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """The certificate that the client is shown, and the answer to a line."""
    writer.write(b"test\n")
    answer = await reader.readline()
    session: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate = session.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate, answer


async def asked(address: Address, name: str) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection(*address, ssl=trusting(), server_hostname=name)
    found = await talk(reader, writer)
    writer.close()
    await writer.wait_closed()
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "pod"), [("one.example", "prod"), ("ONE.example", "prod"), ("deep.er.two.example", "second")]
)
async def test_the_name_decides_and_the_session_is_the_servers(
    ground: SidecarGround, certificates: Mapping[str, bytes], name: str, pod: str
) -> None:
    certificate, answer = await asked(ground.entries[CLIENT, SECURE], name)
    assert certificate == certificates[pod]
    assert answer == b"test\n"


@pytest.mark.asyncio
async def test_a_name_without_a_rule_reaches_no_server(
    ground: SidecarGround, certificates: Mapping[str, bytes]
) -> None:
    with pytest.raises(ConnectionError):
        await asked(ground.entries[CLIENT, SECURE], "three.example")
    record = await logged(ground.sidecars[CLIENT], lambda one: one.get("error.code") == "route_blackhole")
    assert record["dst.addr"] == f"{SECURE_VIP}:{SECURE_PORT}"


@pytest.mark.asyncio
async def test_a_client_behind_socks5_says_its_name_after_the_reply(
    ground: SidecarGround, certificates: Mapping[str, bytes]
) -> None:
    client = ground.clients[0]
    async with Wires() as wires:
        wire = await wires.dial((client.ip, 15080), source=client.ip)
        await wire.send(b"\x05\x01\x00")
        assert await wire.receive(2) == b"\x05\x00"
        host = SECURE_HOST.encode()
        await wire.send(b"\x05\x01\x00\x03" + bytes([len(host)]) + host + SECURE_PORT.to_bytes(2))
        assert (await wire.receive(10))[:2] == b"\x05\x00"
        await wire.writer.start_tls(trusting(), server_hostname="a.two.example")
        certificate, answer = await talk(wire.reader, wire.writer)
    assert certificate == certificates["second"]
    assert answer == b"test\n"


@pytest.mark.asyncio
async def test_a_server_that_speaks_first_is_not_kept_waiting_on_a_tcp_port(ground: SidecarGround) -> None:
    async with Wires() as wires:
        application = await wires.application(ground.prod.ip, GREETING_PORT)
        client = await wires.dial(ground.entries[CLIENT, "greeting"])
        server = await application.accept()
        await server.send(b"220 ready")
        assert await client.receive(9) == b"220 ready"
