"""TLS at the gateway: passed through by server name, or ended there with and without client certificates."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from tests.peers.tls_client import TlsClient, client_context
from tests.peers.web_certificates import WebAuthority, WebCertificate
from tests.waypoint.gateway.edge import (
    SERVICE_PORT,
    TLS_PORT,
    TLS_SERVICE_PORT,
    Edge,
    gateway,
    refused,
    rules,
    said,
    secret,
    server,
    to,
)
from tests.waypoint.server.ground import APP_PORT, logged, sample
from tests.ztun.proxy.applications import Wires

pytestmark = pytest.mark.net

PORT = 443
GATEWAY = "ingressgateway-1"
BULK_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(tmp_path_factory.mktemp("tls")) as edge:
        edge.start()
        yield edge


@pytest.fixture(scope="module")
def web() -> WebAuthority:
    return WebAuthority()


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Wires]:
    async with Wires() as wires:
        yield wires


class Client:
    """Makes TLS connections to the gateway."""

    def __init__(self, edge: Edge, wires: Wires, web: WebAuthority, directory: Path) -> None:
        self._edge = edge
        self._wires = wires
        self._web = web
        self._directory = directory

    async def connect(
        self, name: str | None, shown: WebCertificate | None = None, *, port: int = PORT
    ) -> TlsClient:
        """A session that trusts the web CA; raises as :meth:`TlsClient.handshake` does."""
        files: dict[str, Path] = {}
        if shown is not None:
            for part, text in (("certificate", shown.chain), ("key", shown.key)):
                files[part] = self._directory / part
                files[part].write_text(text)
        context = client_context(self._web.pem, **files)
        context.check_hostname = name is not None
        client = TlsClient(await self._wires.dial(self._edge.address(port)), context, name)
        await client.handshake()
        return client

    async def answer(self, name: str | None, shown: WebCertificate | None = None) -> bytes:
        """What the echo server behind the gateway says; empty when the connection ended instead."""
        try:
            client = await self.connect(name, shown)
            await client.send(b"test\n")
            return await client.receive(len(b"hello test\n"))
        except (ssl.SSLError, ConnectionError):
            return b""


@pytest.fixture
def client(edge: Edge, wires: Wires, web: WebAuthority, tmp_path: Path) -> Client:
    return Client(edge, wires, web, tmp_path)


def tcp_to(*names: str) -> Mapping[str, Any]:
    return rules("terminated", [GATEWAY], hosts=names or ("*",), tcp=[{"route": [to("echo-server")]}])


def keys(certificate: WebCertificate) -> dict[str, str]:
    return {"tls_crt": certificate.chain, "tls_key": certificate.key}


def terminating(mode: str = "SIMPLE", credential: str = "shop", *hosts: str, **more: Any) -> dict[str, Any]:
    tls = {"mode": mode, **({"credentialName": credential} if credential else {}), **more}
    return server(PORT, "TLS", *(hosts or ("shop.example.com",)), tls=tls)


# -- passed through ---------------------------------------------------------------------------------------------


@pytest.fixture
def passthrough() -> list[Mapping[str, Any]]:
    match = [{"sniHosts": ["db.example.com"]}]
    return [
        gateway(GATEWAY, server(PORT, "TLS", "*", tls={"mode": "PASSTHROUGH"})),
        rules("by-name", [GATEWAY], tls=[{"match": match, "route": [to("app", TLS_SERVICE_PORT)]}]),
    ]


@pytest_asyncio.fixture
async def tls_application(edge: Edge, web: WebAuthority, tmp_path: Path) -> AsyncIterator[list[str]]:
    """An echo server that speaks TLS itself, at the pod ``app``; gives the server names that it was asked for."""
    made = web.issue("db.example.com")
    for name, text in (("chain", made.chain), ("key", made.key)):
        (tmp_path / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    names: list[str] = []
    context.sni_callback = lambda _, name, __: names.append(name)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (ssl.SSLError, ConnectionError):
            pass
        writer.close()

    listening = await asyncio.start_server(serve, edge.app.ip, TLS_PORT, ssl=context)
    yield names
    listening.close()
    await listening.wait_closed()


@pytest.mark.asyncio
async def test_ciphertext_goes_by_server_name_to_who_holds_the_key(
    edge: Edge, client: Client, passthrough: list[Mapping[str, Any]], tls_application: list[str]
) -> None:
    await edge.apply(passthrough)
    session = await client.connect("db.example.com")
    await session.send(b"question")
    assert await session.receive(8) == b"question"
    assert tls_application == ["db.example.com"]
    await session.notify_close()
    assert await session.receive_all() == b""


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["other.example.com", None])
async def test_an_unknown_server_name_is_closed(
    edge: Edge,
    client: Client,
    passthrough: list[Mapping[str, Any]],
    tls_application: list[str],
    name: str | None,
) -> None:
    await edge.apply(passthrough)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await client.connect(name)
    assert tls_application == []
    refusal = await logged(edge.gateway, lambda one: one.get("error.code") == "route_reject")
    assert "TLS-NO-SNI-MATCH" in refusal["error.hint"]


@pytest.mark.asyncio
async def test_what_is_no_tls_is_closed(
    edge: Edge, wires: Wires, passthrough: list[Mapping[str, Any]]
) -> None:
    await edge.apply(passthrough)
    wire = await wires.dial(edge.address(PORT))
    await wire.send(b"GET / HTTP/1.1\r\n\r\n")
    assert await wire.ending() == "reset"
    await logged(edge.gateway, lambda one: one.get("error.code") == "no_client_hello")


# -- ended at the gateway ---------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_tls_ends_at_the_gateway(edge: Edge, client: Client, web: WebAuthority) -> None:
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    await edge.apply([gateway(GATEWAY, terminating()), tcp_to(), shop])
    assert await client.answer("shop.example.com") == b"hello test\n"
    assert await client.answer("other.example.com") == b""


@pytest.mark.asyncio
async def test_bytes_and_ends_go_through_both_ways(
    edge: Edge, client: Client, web: WebAuthority, wires: Wires
) -> None:
    application = await wires.application(edge.app.ip, APP_PORT)
    to_app = rules("terminated", [GATEWAY], tcp=[{"route": [to("app", SERVICE_PORT)]}])
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    await edge.apply([gateway(GATEWAY, terminating()), to_app, shop])
    session, behind = await asyncio.gather(client.connect("shop.example.com"), application.accept())
    up, down = bytes(range(256)) * (BULK_BYTES // 256), bytes(range(255, -1, -1)) * (BULK_BYTES // 256)

    async def say_all() -> None:
        await session.send(up)
        await session.notify_close()

    _, received = await asyncio.gather(say_all(), behind.receive_all())
    assert received == up
    answer = asyncio.ensure_future(session.receive_all())
    await behind.send(down)
    behind.end()
    assert await answer == down


@pytest.mark.asyncio
async def test_a_truncated_session_is_a_reset_to_the_application(
    edge: Edge, client: Client, web: WebAuthority, wires: Wires
) -> None:
    application = await wires.application(edge.app.ip, APP_PORT)
    to_app = rules("terminated", [GATEWAY], tcp=[{"route": [to("app", SERVICE_PORT)]}])
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    await edge.apply([gateway(GATEWAY, terminating()), to_app, shop])
    session, behind = await asyncio.gather(client.connect("shop.example.com"), application.accept())
    await session.send(b"half a mess")
    assert await behind.receive(11) == b"half a mess"
    session.wire.end()
    assert await behind.ending() == "reset"


@pytest.mark.asyncio
async def test_one_port_has_many_servers_and_each_its_certificate(
    edge: Edge,
    client: Client,
    web: WebAuthority,
    tls_application: list[str],
    passthrough: list[Mapping[str, Any]],
) -> None:
    """Passed through, ended with one and ended with another certificate, by server name on one port."""
    blog = web.issue("*.blog.example.com")
    servers = (
        server(PORT, "TLS", "db.example.com", tls={"mode": "PASSTHROUGH"}),
        terminating("SIMPLE", "shop", "shop.example.com"),
        terminating("SIMPLE", "blog", "*.blog.example.com"),
    )
    for number, one in enumerate(servers):
        one["port"]["name"] = f"tls-{number}"
    await edge.apply(
        [
            gateway(GATEWAY, *servers),
            passthrough[1],
            rules("shop", [GATEWAY], hosts=["shop.example.com"], tcp=[{"route": [to("echo-server")]}]),
            rules("blog", [GATEWAY], hosts=["*.blog.example.com"], tcp=[{"route": [to("echo-server-2")]}]),
            secret("shop", **keys(web.issue("shop.example.com"))),
            secret("blog", cert=blog.chain, key=blog.key),
        ]
    )
    assert await client.answer("shop.example.com") == b"hello test\n"
    assert await client.answer("me.blog.example.com") == b"hello-2 tes"
    assert (await client.connect("db.example.com")).session.version()
    assert tls_application == ["db.example.com"]


@pytest.mark.asyncio
async def test_a_missing_secret_refuses_its_server_only_until_it_is_there(
    edge: Edge, client: Client, web: WebAuthority
) -> None:
    lost = server(8443, "TLS", "lost.example.com", tls={"mode": "SIMPLE", "credentialName": "lost"})
    shop = secret("shop", **keys(web.issue("shop.example.com")))
    documents = [gateway(GATEWAY, terminating(), lost), tcp_to(), shop]
    await edge.apply(documents)
    assert await client.answer("shop.example.com") == b"hello test\n"
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await client.connect("lost.example.com", port=8443)
    (problem,) = said(edge.gateway, "no Secret istio-system/lost")
    assert problem["code"] == "GW-TLS-CREDENTIAL"
    assert problem["level"] == "error"
    assert "spec.servers[1].tls" in problem["message"]
    await logged(edge.gateway, lambda one: one.get("error.code") == "tls_no_certificate")

    await edge.apply([*documents, secret("lost", **keys(web.issue("lost.example.com")))])
    assert (await client.connect("lost.example.com", port=8443)).session.version()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"tls_crt": "no pem", "tls_key": "no pem"}, "no PEM text"),
        ({"tls_crt": "CHAIN"}, "no tls.key or key"),
        ({"tls_crt": "CHAIN", "tls_key": "OTHER"}, "cannot be used together"),
        ({"tls_crt": "CHAIN", "tls_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n"}, "cannot be read"),
    ],
)
async def test_an_unusable_secret_says_why_and_shows_nothing_of_itself(
    edge: Edge, client: Client, web: WebAuthority, values: dict[str, str], why: str
) -> None:
    texts = {"CHAIN": web.issue("shop.example.com").chain, "OTHER": web.issue("shop.example.com").key}
    broken = secret("shop", **{key: texts.get(text, text) for key, text in values.items()})
    await edge.apply([gateway(GATEWAY, terminating()), tcp_to(), broken])
    assert said(edge.gateway, why)
    assert await client.answer("shop.example.com") == b""
    assert "PRIVATE KEY" not in edge.gateway.log.read_text()


@pytest.mark.asyncio
async def test_a_new_certificate_is_for_new_connections(
    edge: Edge, client: Client, web: WebAuthority
) -> None:
    old, new = web.issue("shop.example.com"), web.issue("shop.example.com")
    listener = [gateway(GATEWAY, terminating()), tcp_to()]
    await edge.apply([*listener, secret("shop", **keys(old))])
    staying = await client.connect("shop.example.com")
    await edge.apply([*listener, secret("shop", **keys(new))])
    coming = await client.connect("shop.example.com")
    shown = [one.session.getpeercert() for one in (staying, coming)]
    assert [int(one["serialNumber"], 16) for one in shown if one] == [old.serial, new.serial]
    await staying.send(b"test\n")
    assert await staying.receive(11) == b"hello test\n"


@pytest.mark.asyncio
async def test_certificate_files_are_followed(
    edge: Edge, client: Client, web: WebAuthority, tmp_path: Path
) -> None:
    def write(certificate: WebCertificate) -> None:
        for name, text in (("crt", certificate.chain), ("key", certificate.key)):
            (tmp_path / f"new.{name}").write_text(text)
            (tmp_path / f"new.{name}").replace(tmp_path / f"tls.{name}")

    old, new = web.issue("shop.example.com"), web.issue("shop.example.com", "www.example.com")
    write(old)
    files = {"serverCertificate": str(tmp_path / "tls.crt"), "privateKey": str(tmp_path / "tls.key")}
    await edge.apply([gateway(GATEWAY, terminating("SIMPLE", "", **files)), tcp_to()])

    async def serial() -> int:
        shown = (await client.connect("shop.example.com")).session.getpeercert()
        assert shown
        return int(shown["serialNumber"], 16)

    assert await serial() == old.serial
    write(new)
    while await serial() != new.serial:
        pass


# -- client certificates ----------------------------------------------------------------------------------------


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
    assert said(edge.gateway, "no TLS version up to TLSV1_1 is spoken")


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
    assert said(edge.gateway, "needs the CA certificates of the clients")


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


# -- what is kept to itself -------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_no_key_is_shown_to_anybody(edge: Edge, web: WebAuthority) -> None:
    shop = web.issue("shop.example.com")
    await edge.apply([gateway(GATEWAY, terminating()), tcp_to(), secret("shop", **keys(shop))])
    dump = str(edge.gateway.admin("/config_dump"))
    encoded = secret("shop", **keys(shop))["data"]["tls.key"]
    assert encoded not in dump
    assert "PRIVATE KEY" not in dump + edge.gateway.log.read_text()


@pytest.mark.asyncio
async def test_a_server_without_route_is_not_opened(edge: Edge, web: WebAuthority) -> None:
    await edge.apply([gateway(GATEWAY, terminating()), secret("shop", **keys(web.issue("shop.example.com")))])
    assert await refused(edge.address(PORT))
    assert said(edge.gateway, "no route")
