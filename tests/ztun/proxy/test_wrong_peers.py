"""A peer with a wrong certificate gets not one byte through, in either direction, and each kind has its code."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.authority import CertificateAuthority, create_authority
from certs.issuers import Change
from certs.spiffe import SpiffeId
from certs.store import WorkloadCertificate
from tests.certs.handshake import certificate, crafted, foreign_authority
from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Pair, until
from tests.ztun.proxy.rogue import EVIL, RogueServer, attack, client_context, connect_request, server_context
from ztun.errors import CertificateRevoked, TunnelTlsError
from ztun.mesh.model import HBONE_PORT

pytestmark = pytest.mark.net

CLIENT = "spiffe://cluster.local/ns/default/sa/client"
SERVER = "spiffe://cluster.local/ns/default/sa/server"

Make = Callable[[CertificateAuthority, str], WorkloadCertificate]


def expired(authority: CertificateAuthority, name: str) -> WorkloadCertificate:
    return crafted(authority, name, start=-timedelta(hours=2), end=-timedelta(seconds=5))


WRONG: dict[str, tuple[Make, str]] = {
    "other trust domain": (
        lambda authority, name: crafted(authority, name.replace("cluster.local", "example.org")),
        "peer_trust_domain",
    ),
    "expired": (expired, "peer_expired"),
    "not yet valid": (
        lambda authority, name: crafted(authority, name, start=timedelta(minutes=50)),
        "peer_not_yet_valid",
    ),
    "two URI names": (
        lambda authority, name: crafted(authority, name, "spiffe://cluster.local/ns/default/sa/admin"),
        "peer_uri_sans",
    ),
    "no URI name": (lambda authority, name: crafted(authority), "peer_uri_sans"),
    "NUL in the name": (
        lambda authority, name: crafted(authority, name + "\x00.evil"),
        "peer_spiffe_grammar",
    ),
    "extra path segment": (
        lambda authority, name: crafted(authority, name + "/admin"),
        "peer_spiffe_grammar",
    ),
    "self-signed": (lambda authority, name: crafted(None, name), "peer_self_signed"),
    "other root": (lambda authority, name: crafted(foreign_authority(), name), "peer_unknown_issuer"),
    "a CA certificate": (lambda authority, name: crafted(authority, name, ca=True), "peer_chain"),
}


async def refused_client(pair: Pair, wires: Wires, context: ssl.SSLContext) -> TunnelTlsError:
    """Attack the server's proxy; afterwards a good client is served, as the application's first."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    assert await attack(pair.server_ip, context, f"{pair.server_ip}:{APP_PORT}") == b""
    refusal = await pair.far.journal.refusal()
    assert refusal.direction == "inbound"
    assert isinstance(refusal.error, TunnelTlsError)
    failures = pair.far.sample("ztun_handshake_failures_total", role="server", code=code(refusal))
    assert failures == pair.far.sample("ztun_handshake_failures_total") == 1
    assert pair.far.sample("istio_tcp_connections_opened_total") == 0
    assert application.accepted == 0
    client = await wires.dial(await pair.enter_server())
    await client.send(b"good")
    assert await (await application.accept()).receive(4) == b"good"
    assert application.accepted == 1
    return refusal.error


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", WRONG)
async def test_wrong_client_gets_no_byte_through(pair: Pair, wires: Wires, tmp_path: Path, kind: str) -> None:
    make, expected = WRONG[kind]
    context = client_context(tmp_path, make(pair.ca.authority, CLIENT))
    error = await refused_client(pair, wires, context)
    assert (error.code, error.flag, error.stage) == (expected, "TLS_FAILURE", "tls")
    assert str(error)


@pytest.mark.asyncio
async def test_client_of_another_trusted_domain_gets_no_byte_through(
    pair: Pair, wires: Wires, tmp_path: Path
) -> None:
    """Its root is in the bundle, as in a federation, but this pod serves its own trust domain only."""
    other = create_authority("example.org", now=datetime.now(UTC))
    pair.ca.extra_roots = other
    context = client_context(tmp_path, certificate(other, trust_domain="example.org"))
    assert (await refused_client(pair, wires, context)).code == "peer_trust_domain"


@pytest.mark.asyncio
async def test_revoked_client_gets_no_byte_through(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    stolen = certificate(pair.ca.authority)
    pair.ca.authority = pair.ca.authority.revoke([stolen.chain[0].serial_number], now=datetime.now(UTC))
    error = await refused_client(pair, wires, client_context(tmp_path, stolen))
    assert isinstance(error, CertificateRevoked)
    assert (error.code, error.flag) == ("peer_revoked", "CERT_REVOKED")
    assert pair.far.sample("istio_crl_policy_rejections_total", reporter="destination") == 1


@pytest.mark.asyncio
async def test_client_without_certificate_gets_no_byte_through(
    pair: Pair, wires: Wires, tmp_path: Path
) -> None:
    error = await refused_client(pair, wires, client_context(tmp_path, None))
    assert error.code == "peer_no_certificate"


@pytest.mark.asyncio
async def test_client_without_h2_gets_no_byte_through(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    context = client_context(tmp_path, certificate(pair.ca.authority))
    context.set_alpn_protocols(["http/1.1"])
    assert (await refused_client(pair, wires, context)).code == "tls_alpn"


@pytest.mark.asyncio
async def test_client_with_an_older_tls_gets_no_byte_through(
    pair: Pair, wires: Wires, tmp_path: Path
) -> None:
    context = client_context(tmp_path, certificate(pair.ca.authority))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await refused_client(pair, wires, context)).code == "tls_version"


@pytest.mark.asyncio
async def test_good_certificate_of_a_foreign_implementation_gets_through(
    pair: Pair, wires: Wires, tmp_path: Path
) -> None:
    """The control for everything above: the same attack with a right certificate succeeds."""
    application = await wires.echo(pair.server_ip, APP_PORT)
    await pair.start()
    context = client_context(tmp_path, certificate(pair.ca.authority))
    attacking = asyncio.create_task(attack(pair.server_ip, context, f"{pair.server_ip}:{APP_PORT}"))
    await until(lambda: application.accepted == 1)
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)
    assert str(pair.far.journal.opens[0].source_identity) == CLIENT


async def refused_server(pair: Pair, wires: Wires, context: ssl.SSLContext | None) -> TunnelTlsError:
    """Dial a server that is not who it should be; it must not learn what the client has to say."""
    rogue = RogueServer(wires)
    await rogue.listen(pair.server_ip, context)
    await pair.start("near")
    client = await wires.dial(await pair.enter_server())
    client.writer.write(b"secret")
    assert await client.ending() == "reset"
    report = await pair.near.journal.end()
    assert report.direction == "outbound"
    assert (report.bytes_sent, report.bytes_recv) == (0, 0)
    assert isinstance(report.error, TunnelTlsError)
    failures = pair.near.sample("ztun_handshake_failures_total", role="client", code=code(report))
    assert failures == pair.near.sample("ztun_handshake_failures_total") == 1
    assert rogue.received == b""
    return report.error


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [kind for kind in WRONG if kind != "other trust domain"])
async def test_wrong_server_gets_no_byte(pair: Pair, wires: Wires, tmp_path: Path, kind: str) -> None:
    make, expected = WRONG[kind]
    error = await refused_server(pair, wires, server_context(tmp_path, make(pair.ca.authority, SERVER)))
    assert (error.code, error.flag) == (expected, "TLS_FAILURE")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name",
    [CLIENT, SERVER.replace("cluster.local", "example.org"), SERVER + "s", SERVER.replace("default", "prod")],
)
async def test_server_with_another_identity_gets_no_byte(
    pair: Pair, wires: Wires, tmp_path: Path, name: str
) -> None:
    error = await refused_server(pair, wires, server_context(tmp_path, crafted(pair.ca.authority, name)))
    assert error.code == "peer_identity_mismatch"
    assert str(SpiffeId.parse(SERVER)) in str(error)


@pytest.mark.asyncio
async def test_revoked_server_gets_no_byte(pair: Pair, wires: Wires, tmp_path: Path) -> None:
    stolen = certificate(pair.ca.authority, "server")
    pair.ca.authority = pair.ca.authority.revoke([stolen.chain[0].serial_number], now=datetime.now(UTC))
    error = await refused_server(pair, wires, server_context(tmp_path, stolen))
    assert (error.code, error.flag) == ("peer_revoked", "CERT_REVOKED")
    assert pair.near.sample("istio_crl_policy_rejections_total", reporter="source") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("alpn", ["http/1.1", ""])
async def test_server_without_h2_gets_no_byte(pair: Pair, wires: Wires, tmp_path: Path, alpn: str) -> None:
    context = server_context(tmp_path, certificate(pair.ca.authority, "server"), alpn=alpn)
    assert (await refused_server(pair, wires, context)).code == "tls_alpn"


@pytest.mark.asyncio
async def test_a_client_that_is_revoked_during_its_handshake_gets_no_byte_through(
    pair: Pair, wires: Wires, tmp_path: Path
) -> None:
    """The session was made before the list came, and would know nothing of it."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start("far")
    stolen = certificate(pair.ca.authority, "client")
    sock = socket.create_connection((pair.server_ip, HBONE_PORT))
    sock.setblocking(False)
    far = pair.far
    await until(lambda: any(tunnel.tls.session is not None for tunnel in far.inbound._of))
    pair.ca.authority = pair.ca.authority.revoke([stolen.chain[0].serial_number], now=datetime.now(UTC))
    far.plane.store._changed(Change.TRUST)
    await far.plane.store._trust.refresh()
    context = client_context(tmp_path, stolen)
    reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="")
    writer.write(connect_request(f"{pair.server_ip}:{APP_PORT}", EVIL))
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await reader.read()
    writer.transport.abort()
    await until(lambda: not far.inbound._of)
    assert far.sample("istio_crl_policy_rejections_total") == 1
    assert application.accepted == 0
