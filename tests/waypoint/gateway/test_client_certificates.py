"""Who is let in where TLS ends at the gateway: certificates of clients, right and wrong, and of the mesh."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from certs.directory import CaDirectory
from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from tests.peers.tls_client import TlsClient, client_context
from tests.peers.web_certificates import WebAuthority, WebCertificate
from tests.waypoint.gateway.edge import Edge, gateway, rules, said, says, secret, to
from tests.waypoint.gateway.tls import GATEWAY, PORT, Client, keys, tcp_to, terminating
from tests.waypoint.server.ground import APP_PORT, logged, sample, until
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.backlog import FullBacklog

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(tmp_path_factory.mktemp("tls")) as edge:
        edge.start()
        yield edge


@pytest.fixture
def mutual(web: WebAuthority) -> Callable[..., list[Mapping[str, Any]]]:
    def documents(mode: str = "MUTUAL", ca_crl: str = "", **more: Any) -> list[Mapping[str, Any]]:
        lists = {"ca_crl": ca_crl} if ca_crl else {}
        shop = secret("shop", **keys(web.issue("shop.example.com")), ca_crt=web.pem, **lists)
        return [gateway(GATEWAY, terminating(mode, **more)), tcp_to(), shop]

    return documents


@pytest.mark.asyncio
async def test_a_right_client_certificate_is_let_in(
    edge: Edge, client: Client, web: WebAuthority, mutual: Callable[..., list[Mapping[str, Any]]]
) -> None:
    await edge.apply(mutual())
    assert await client.answer("shop.example.com", web.issue("customer")) == b"hello test\n"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("shown", "code"),
    [
        (lambda web: None, "peer_no_certificate"),
        (lambda web: WebAuthority("stranger").issue("customer"), "peer_unknown_issuer"),
        (lambda web: web.issue("customer", expired=True), "peer_expired"),
    ],
)
async def test_a_wrong_client_certificate_gets_no_byte_through(
    edge: Edge,
    client: Client,
    web: WebAuthority,
    mutual: Callable[..., list[Mapping[str, Any]]],
    shown: Callable[[WebAuthority], WebCertificate | None],
    code: str,
) -> None:
    await edge.apply(mutual())
    before = sample(edge.gateway, "istio_tcp_connections_opened_total")
    assert await client.answer("shop.example.com", shown(web)) == b""
    await logged(edge.gateway, lambda one: one.get("error.code") == code)
    assert sample(edge.gateway, "istio_tcp_connections_opened_total") == before
    assert sample(edge.gateway, "ztun_handshake_failures_total", code=code) >= 1


@pytest.mark.asyncio
async def test_a_revoked_client_certificate_is_refused(
    edge: Edge, client: Client, web: WebAuthority, mutual: Callable[..., list[Mapping[str, Any]]]
) -> None:
    good, bad = web.issue("customer"), web.issue("customer")
    await edge.apply(mutual(ca_crl=web.revocations(bad)))
    assert await client.answer("shop.example.com", bad) == b""
    assert await client.answer("shop.example.com", good) == b"hello test\n"
    await logged(edge.gateway, lambda one: one.get("error.code") == "peer_revoked")


@pytest.mark.asyncio
async def test_a_client_certificate_of_another_name_is_refused(
    edge: Edge, client: Client, web: WebAuthority, mutual: Callable[..., list[Mapping[str, Any]]]
) -> None:
    await edge.apply(mutual(subjectAltNames=["Customer.example.com", "spiffe://web/customer"]))
    assert await client.answer("shop.example.com", web.issue("someone.example.com")) == b""
    for name in ("customer.example.com", "spiffe://web/customer"):
        assert await client.answer("shop.example.com", web.issue(name)) == b"hello test\n"
    await logged(edge.gateway, lambda one: one.get("error.code") == "client_not_listed")


@pytest.mark.asyncio
async def test_client_certificates_may_be_listed_one_by_one(
    edge: Edge, client: Client, web: WebAuthority, mutual: Callable[..., list[Mapping[str, Any]]]
) -> None:
    known, other = web.issue("customer"), web.issue("customer")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(known.chain)).hexdigest()
    await edge.apply(mutual(verifyCertificateHash=[digest.upper()]))
    assert await client.answer("shop.example.com", known) == b"hello test\n"
    assert await client.answer("shop.example.com", other) == b""


@pytest.mark.asyncio
async def test_versions_may_be_narrowed(edge: Edge, client: Client, web: WebAuthority) -> None:
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    for lowest, highest, spoken in (("", "TLSV1_2", "TLSv1.2"), ("TLSV1_3", "", "TLSv1.3")):
        limits = {"minProtocolVersion": lowest, "maxProtocolVersion": highest}
        given = {key: value for key, value in limits.items() if value}
        await edge.apply([gateway(GATEWAY, terminating(**given)), tcp_to(), shop])
        assert (await client.connect("shop.example.com")).session.version() == spoken
    await edge.apply([gateway(GATEWAY, terminating(maxProtocolVersion="TLSV1_1")), tcp_to(), shop])
    assert await client.answer("shop.example.com") == b""
    assert await says(edge.gateway, "no TLS version up to TLSV1_1 is spoken")


@pytest.mark.asyncio
async def test_an_optional_certificate_may_be_missing_but_not_wrong(
    edge: Edge, client: Client, web: WebAuthority, mutual: Callable[..., list[Mapping[str, Any]]]
) -> None:
    await edge.apply(mutual("OPTIONAL_MUTUAL"))
    assert await client.answer("shop.example.com") == b"hello test\n"
    assert await client.answer("shop.example.com", web.issue("customer")) == b"hello test\n"
    assert await client.answer("shop.example.com", WebAuthority("stranger").issue("customer")) == b""


@pytest.mark.asyncio
async def test_without_a_ca_for_clients_a_mutual_server_takes_nobody(
    edge: Edge, client: Client, web: WebAuthority
) -> None:
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    await edge.apply([gateway(GATEWAY, terminating("MUTUAL")), tcp_to(), shop])
    assert await client.answer("shop.example.com", web.issue("customer")) == b""
    assert await says(edge.gateway, "needs the CA certificates of the clients")


@pytest.mark.asyncio
async def test_the_clients_ca_may_have_a_secret_of_its_own(
    edge: Edge, client: Client, web: WebAuthority
) -> None:
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    clients = secret("shop-cacert", cacert=web.pem)
    await edge.apply([gateway(GATEWAY, terminating("MUTUAL")), tcp_to(), shop, clients])
    assert await client.answer("shop.example.com", web.issue("customer")) == b"hello test\n"


@pytest.mark.asyncio
async def test_a_client_of_the_mesh_shows_its_identity(
    edge: Edge, wires: Wires, client: Client, web: WebAuthority
) -> None:
    """ISTIO_MUTUAL: the gateway shows its certificate of the mesh, and policies see the client's identity."""
    friend, foe = (SpiffeId(DEFAULT_TRUST_DOMAIN, "default", name) for name in ("friend", "foe"))
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "friends", "namespace": "istio-system"},
        "spec": {
            "selector": {"matchLabels": {"istio": GATEWAY}},
            "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": [str(friend).removeprefix("spiffe://")]}}]}],
        },
    }
    await edge.apply([gateway(GATEWAY, terminating("ISTIO_MUTUAL", "")), tcp_to(), policy])

    async def answer(identity: SpiffeId) -> bytes:
        files = edge.authority.issue(identity)
        context = client_context(files.roots.read_text(), certificate=files.chain, key=files.key)
        context.check_hostname = False
        session = TlsClient(await wires.dial(edge.address(PORT)), context, "shop.example.com")
        try:
            await session.handshake()
            await session.send(b"test\n")
            return await session.receive(11)
        except (ssl.SSLError, ConnectionError):
            return b""

    assert await answer(friend) == b"hello test\n"
    assert await answer(foe) == b""
    await logged(edge.gateway, lambda one: one.get("error.code") == "policy_rejection")


async def enter(edge: Edge, wires: Wires, name: str) -> tuple[TlsClient, Callable[[], None]]:
    """A client of the mesh whose handshake with the gateway is done, and what revokes its certificate."""
    files = edge.authority.issue(SpiffeId(DEFAULT_TRUST_DOMAIN, "default", name))
    context = client_context(files.roots.read_text(), certificate=files.chain, key=files.key)
    context.check_hostname = False
    session = TlsClient(await wires.dial(edge.address(PORT)), context, "shop.example.com")
    await session.handshake()
    certificate = x509.load_pem_x509_certificates(files.chain.read_bytes())[0]

    def revoke() -> None:
        CaDirectory(edge.authority.directory).revoke(certificate.serial_number, None, now=datetime.now(UTC))

    return session, revoke


@pytest.mark.asyncio
async def test_a_client_of_the_mesh_that_is_revoked_loses_its_connections(edge: Edge, wires: Wires) -> None:
    await edge.apply([gateway(GATEWAY, terminating("ISTIO_MUTUAL", "")), tcp_to()])
    friend, _ = await enter(edge, wires, "friend")
    stolen, revoke = await enter(edge, wires, "stolen")
    for session in (friend, stolen):
        await session.send(b"test\n")
        assert await session.receive(11) == b"hello test\n"
    revoke()
    with pytest.raises(ConnectionError):
        await stolen.receive_all()
    await logged(edge.gateway, lambda one: one.get("error.code") == "peer_revoked" and "bytes_sent" in one)
    await friend.send(b"test\n")
    assert await friend.receive(11) == b"hello test\n"


@pytest.mark.asyncio
async def test_a_client_that_is_revoked_while_its_destination_is_dialled_gets_no_byte_through(
    edge: Edge, wires: Wires
) -> None:
    app = rules("terminated", [GATEWAY], tcp=[{"route": [to("app")]}])
    await edge.apply([gateway(GATEWAY, terminating("ISTIO_MUTUAL", "")), app])
    dialled = sample(edge.gateway, "istio_tcp_connections_opened_total")
    changes = len(said(edge.gateway, "trust bundle changed"))
    async with FullBacklog(edge.app.ip, APP_PORT) as busy:
        stolen, revoke = await enter(edge, wires, "robbed")
        await until(
            edge.gateway,
            "dialling",
            lambda: sample(edge.gateway, "istio_tcp_connections_opened_total") > dialled,
        )
        revoke()
        await until(
            edge.gateway,
            "knowing the revocation",
            lambda: len(said(edge.gateway, "trust bundle changed")) > changes,
        )
        reached = await busy.relent()
        with pytest.raises(ConnectionError):
            await stolen.receive_all()
        with reached, pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(reached, 1)
    found = await logged(
        edge.gateway,
        lambda one: one.get("error.code") == "peer_revoked" and "app." in str(one.get("dst.service")),
    )
    assert found["bytes_sent"] == 0
