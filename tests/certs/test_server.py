from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from certs.bundle import certificates_pem, parse_certificates
from certs.directory import CaDirectory
from certs.disk import write_file, write_key
from certs.endpoint import listen_on
from certs.errors import CertError, IssuerError
from certs.issuers import open_issuer
from certs.issuers.remote import RemoteIssuer, RemoteSettings
from certs.request import build_request, new_key, request_pem
from certs.server import CaServer, ServerSettings
from certs.store import wall_clock
from tests.certs.conftest import workload

pytestmark = pytest.mark.net

TOKEN = "a-token-of-enough-characters"
ACCESS = {
    "tokens": [{"token": TOKEN, "may": ["spiffe://cluster.local/ns/default/*"]}],
    "certificates": [
        {"identity": str(workload("node")), "may": ["spiffe://cluster.local/ns/default/sa/client"]},
    ],
}


class Running:
    """A CA server on a free port of the loopback address, and what its clients need."""

    def __init__(self, directory: Path, *, intermediate: bool = False) -> None:
        self.directory = directory
        self.ca = CaDirectory(directory / "ca")
        self.ca.create("cluster.local", now=wall_clock(), intermediate=intermediate)
        self.access = directory / "access.yaml"
        write_file(self.access, json.dumps(ACCESS).encode(), private=True)
        self.token = directory / "token"
        write_file(self.token, f"{TOKEN}\n".encode(), private=True)
        self.roots = self.ca.path / "root-cert.pem"
        self.url = ""
        self.late = timedelta()

    def now(self) -> datetime:
        """The server's clock; OpenSSL has its own."""
        return wall_clock() + self.late

    @contextlib.asynccontextmanager
    async def serving(self, *names: str, access: bool = True) -> AsyncIterator[None]:
        with listen_on("127.0.0.1", 0) as listening:
            self.url = f"https://127.0.0.1:{listening.getsockname()[1]}"
            settings = ServerSettings(
                self.ca.path, names or ("127.0.0.1",), self.access if access else None, self.now
            )
            task = asyncio.create_task(CaServer(settings).serve(listening))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def client(self, **options: Path) -> AsyncIterator[RemoteIssuer]:
        issuer = RemoteIssuer(RemoteSettings(self.url, options.pop("roots", self.roots), **options))
        try:
            yield issuer
        finally:
            await issuer.close()

    def certificate(self, name: str) -> Path:
        """A directory with a certificate of the mesh."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        key, identity = new_key(), workload(name)
        chain = self.ca.load().sign(build_request(key, identity), identity, now=wall_clock())
        write_file(directory / "cert-chain.pem", certificates_pem(chain), private=False)
        write_key(directory / "key.pem", key)
        return directory

    async def code(self, name: str, **options: Path) -> str:
        """The code with which a certificate is refused; empty when it is not."""
        async with self.client(**options) as issuer:
            try:
                await issuer.obtain(workload(name))
            except CertError as error:
                return error.code
        return ""


@pytest.fixture
def server(tmp_path: Path) -> Running:
    return Running(tmp_path)


@pytest.mark.asyncio
async def test_token_gets_what_it_was_granted_and_nothing_else(server: Running) -> None:
    async with server.serving(), server.client(token=server.token) as issuer:
        issued = await issuer.obtain(workload("client"))
        assert issued.chain[0].public_key() == issued.key.public_key()
        trust = await issuer.trust()
        assert trust.roots == server.ca.load().roots
        with pytest.raises(IssuerError) as raised:
            await issuer.obtain(workload("client", "example.org"))
        assert raised.value.code == "identity_not_granted"
        assert TOKEN not in str(raised.value)


@pytest.mark.asyncio
async def test_wrong_token_and_no_credentials_get_nothing(server: Running) -> None:
    wrong = server.directory / "wrong"
    write_file(wrong, b"another-token-of-enough-characters", private=True)
    async with server.serving():
        assert await server.code("client", token=wrong) == "token_unknown"
        write_file(server.token, b"", private=True)
        assert await server.code("client", token=server.token) == "ca_token"
        context = ssl.create_default_context(cafile=str(server.roots))
        async with httpx.AsyncClient(verify=context, base_url=server.url, trust_env=False) as bare:
            assert (await bare.get("/v1/trust")).status_code == 401
            assert (await bare.get("/healthz")).text == "ok\n"
            wrong_scheme = await bare.get("/v1/trust", headers={"authorization": f"Basic {TOKEN}"})
            assert wrong_scheme.status_code == 401


@pytest.mark.asyncio
async def test_certificate_renews_itself_and_gets_what_it_was_granted(server: Running) -> None:
    node, other = server.certificate("node"), server.certificate("other")
    async with server.serving():
        assert await server.code("node", certificate=node) == ""
        assert await server.code("client", certificate=node) == ""
        assert await server.code("other", certificate=node) == "identity_not_granted"
        assert await server.code("other", certificate=other) == ""
        assert await server.code("client", certificate=other) == "identity_not_granted"


@pytest.mark.asyncio
async def test_without_an_access_file_only_renewal_is_possible(server: Running) -> None:
    node = server.certificate("node")
    async with server.serving(access=False):
        assert await server.code("node", certificate=node) == ""
        assert await server.code("client", certificate=node) == "identity_not_granted"
        assert await server.code("client", token=server.token) == "token_unknown"


@pytest.mark.asyncio
async def test_revoked_certificate_is_no_credential(server: Running) -> None:
    node = server.certificate("node")
    async with server.serving():
        assert await server.code("node", certificate=node) == ""
        serial = parse_certificates((node / "cert-chain.pem").read_bytes(), name="node")[0].serial_number
        server.ca.revoke(serial, None, now=wall_clock())
        assert await server.code("node", certificate=node) == "caller_revoked"


@pytest.mark.asyncio
async def test_certificate_of_a_revoked_intermediate_is_no_credential(tmp_path: Path) -> None:
    server = Running(tmp_path, intermediate=True)
    node, ca = server.certificate("node"), server.ca.load()
    async with server.serving():
        assert await server.code("node", certificate=node) == ""
        server.ca.revoke(ca.certificate.serial_number, ca.certificate.issuer, now=wall_clock())
        assert await server.code("node", certificate=node) == "caller_revoked"
        assert await server.code("client", certificate=node) == "caller_revoked"


@pytest.mark.asyncio
async def test_root_that_was_retired_since_the_handshake_is_no_credential(server: Running) -> None:
    node, roots = server.certificate("node"), server.directory / "roots.pem"
    roots.write_bytes(server.roots.read_bytes())
    async with server.serving(), server.client(certificate=node, roots=roots) as issuer:
        await issuer.obtain(workload("node"))
        server.ca.rotate(now=wall_clock())
        await issuer.obtain(workload("node"))
        server.ca.retire()
        with pytest.raises(IssuerError) as raised:
            await issuer.obtain(workload("node"))
        assert raised.value.code == "caller_root"


@pytest.mark.asyncio
async def test_certificate_that_expired_since_the_handshake_is_no_credential(server: Running) -> None:
    node = server.certificate("node")
    async with server.serving(), server.client(certificate=node) as issuer:
        await issuer.obtain(workload("node"))
        server.late = timedelta(hours=25)
        with pytest.raises(IssuerError) as raised:
            await issuer.obtain(workload("node"))
        assert raised.value.code == "caller_expired"


@pytest.mark.asyncio
async def test_running_server_follows_a_rotation(server: Running) -> None:
    node = server.certificate("node")
    async with server.serving():
        assert await server.code("node", certificate=node) == ""
        server.ca.rotate(now=wall_clock())
        server.ca.retire()
        # The client trusts the new root only; the server shows it as soon as it has heard of the change.
        while (code := await server.code("client", token=server.token)) != "":
            assert code == "ca_untrusted"
        assert await server.code("node", certificate=node) in ("ca_tls", "ca_hung_up")


@pytest.mark.asyncio
async def test_client_refuses_a_server_that_is_not_the_ca(server: Running, tmp_path: Path) -> None:
    stranger = CaDirectory(tmp_path / "stranger")
    stranger.create("cluster.local", now=wall_clock())
    async with server.serving():
        roots = stranger.path / "root-cert.pem"
        assert await server.code("client", token=server.token, roots=roots) == "ca_untrusted"
    async with server.serving("ca.example.org"):
        assert await server.code("client", token=server.token) == "ca_untrusted", "another name"


@pytest.mark.asyncio
async def test_credentials_of_another_ca_are_refused(server: Running, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Running(tmp_path / "other")
    node = stranger.certificate("node")
    async with server.serving():
        assert await server.code("node", certificate=node) in ("ca_tls", "ca_hung_up")


@pytest.mark.asyncio
async def test_ca_that_is_away_is_named_as_such(server: Running) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"https://127.0.0.1:{unused.getsockname()[1]}"
        assert await server.code("client", token=server.token) == "ca_unreachable"


@pytest.mark.asyncio
async def test_grant_taken_away_is_refused_at_once(server: Running) -> None:
    async with server.serving(), server.client(token=server.token) as issuer:
        await issuer.obtain(workload("client"))
        write_file(server.access, b"{}", private=True)
        with pytest.raises(IssuerError) as raised:
            await issuer.obtain(workload("client"))
        assert raised.value.code == "token_unknown"
        server.access.write_bytes(b"tokens: [")
        with pytest.raises(IssuerError) as raised:
            await issuer.obtain(workload("client"))
        assert raised.value.code == "access_unreadable"


@pytest.mark.asyncio
async def test_connections_that_ask_nothing_do_not_keep_a_caller_out(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a handshake, after it, and in the middle of a question."""
    monkeypatch.setattr("certs.server.MAX_CONNECTIONS", 4)
    context = ssl.create_default_context(cafile=str(server.roots))
    async with server.serving(), contextlib.AsyncExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        silent = []
        for tls, said in ((None, b""), (context, b""), (context, b"POST /v1/certificates HTTP/1.1\r\n")) * 4:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            stack.push_async_callback(closed, writer)
            writer.write(said)
            silent.append(reader)
        assert await server.code("client", token=server.token) == ""
        for reader in silent[:-4]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert await server.code("client", token=server.token) == ""


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_handshake_that_is_not_made_ends(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.server.REQUEST_SECONDS", 0.2)
    async with server.serving():
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await closed(writer)


@pytest.mark.asyncio
async def test_bad_questions_are_answered_with_their_reason(server: Running) -> None:
    key = new_key()
    csr = request_pem(build_request(key, workload("client")))
    questions: list[tuple[bytes, int, str]] = [
        (b"", 400, "question_invalid"),
        (b"[]", 400, "question_invalid"),
        (b"{" * 10_000, 400, "question_invalid"),
        (b"x" * 100_000, 413, "question_too_large"),
        (json.dumps({"identity": "x", "csr": csr}).encode(), 400, "identity_invalid"),
        (json.dumps({"identity": str(workload("client")), "csr": "x"}).encode(), 400, "csr_unreadable"),
        (
            json.dumps({"identity": str(workload("other")), "csr": csr}).encode(),
            400,
            "csr_identity_not_authorised",
        ),
        (
            json.dumps({"identity": str(workload("client")), "csr": csr, "lifetime_seconds": 10**9}).encode(),
            400,
            "question_invalid",
        ),
        (
            json.dumps({"identity": str(workload("client")), "csr": csr, "extra": 1}).encode(),
            400,
            "question_invalid",
        ),
    ]
    context = ssl.create_default_context(cafile=str(server.roots))
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        server.serving(),
        httpx.AsyncClient(verify=context, base_url=server.url, headers=headers, trust_env=False) as client,
    ):
        for body, status, code in questions:
            answer = await client.post("/v1/certificates", content=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), body[:60]
        assert (await client.get("/v1/certificates")).status_code == 405
        assert (await client.get("/v2/anything")).status_code == 404


@pytest.mark.asyncio
async def test_lifetime_is_asked_for(server: Running) -> None:
    async with server.serving():
        settings = RemoteSettings(server.url, server.roots, server.token)
        issuer = RemoteIssuer(settings, lifetime=timedelta(minutes=10))
        leaf = (await issuer.obtain(workload("client"))).chain[0]
        await issuer.close()
    assert leaf.not_valid_after_utc - wall_clock() < timedelta(minutes=10, seconds=1)


def test_settings_that_could_not_work_are_refused(tmp_path: Path) -> None:
    for source, options, code in (
        ("http://ca:1", {"roots": tmp_path, "token": tmp_path}, "ca_source"),
        ("https://ca:1", {}, "ca_no_roots"),
        ("https://ca:1", {"roots": tmp_path}, "ca_no_credentials"),
        (str(tmp_path / "missing"), {}, "ca_source"),
        (str(tmp_path), {}, "ca_source"),
    ):
        with pytest.raises(CertError) as raised:
            open_issuer(source, now=wall_clock, **options)
        assert raised.value.code == code
        assert raised.value.hint or code == "ca_source"
