"""TLS at the gateway: passed through by server name, or ended there with a certificate that comes and goes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.peers.web_certificates import WebAuthority, WebCertificate
from tests.waypoint.gateway.edge import (
    SERVICE_PORT,
    TLS_PORT,
    TLS_SERVICE_PORT,
    Edge,
    gateway,
    refused,
    rules,
    says,
    secret,
    server,
    to,
)
from tests.waypoint.gateway.tls import GATEWAY, PORT, Client, keys, tcp_to, terminating
from tests.waypoint.server.ground import APP_PORT, logged
from tests.ztun.proxy.applications import Wires

pytestmark = pytest.mark.net

BULK_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(tmp_path_factory.mktemp("tls")) as edge:
        edge.start()
        yield edge


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

    async with Wires() as wires:
        await wires.echo(edge.app.ip, TLS_PORT, tls=context)
        yield names


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
    session = await client.connect("db.example.com")
    await session.send(b"question")
    assert await session.receive(8) == b"question"
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
    (problem,) = await says(edge.gateway, "no Secret istio-system/lost")
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
    assert await says(edge.gateway, why)
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
    assert await says(edge.gateway, "no route")
