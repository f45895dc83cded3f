"""A CA server over HTTPS: the request is signed there, the private key never leaves this process."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from certs.authority import LEAF_LIFETIME
from certs.bundle import parse_certificates, parse_crls
from certs.disk import read_file
from certs.errors import IssuerError
from certs.issuers.base import Change, Issued, Trust
from certs.request import build_request, new_key, request_pem
from certs.spiffe import SpiffeId
from certs.wire import (
    CERTIFICATES_PATH,
    MAX_ANSWER_BYTES,
    TRUST_PATH,
    CertificateAnswer,
    CertificateQuestion,
    Refusal,
    TrustAnswer,
)

CONNECT_SECONDS = 5.0  # ztunnel's for its CA
ANSWER_SECONDS = 10.0
TRUST_POLL_SECONDS = 30.0  # a revocation is known everywhere within this
MAX_TOKEN_BYTES = 16 * 1024

_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """How to reach a CA server.

    ``roots`` is a PEM file: whom to believe to be the server. ``token`` is a file with a bearer token, read
    for each request because such tokens are replaced; ``certificate`` is a directory with
    ``cert-chain.pem`` and ``key.pem`` to show instead.
    """

    url: str
    roots: Path
    token: Path | None = None
    certificate: Path | None = None


class RemoteIssuer:
    """Asks a CA server. Raises :class:`IssuerError` for settings that could not work."""

    def __init__(
        self,
        settings: RemoteSettings,
        *,
        lifetime: timedelta = LEAF_LIFETIME,
        poll_seconds: float = TRUST_POLL_SECONDS,
    ) -> None:
        if not settings.url.startswith("https://"):
            raise IssuerError("ca_source", f"{settings.url} is no https URL")
        if settings.token is None and settings.certificate is None:
            raise IssuerError(
                "ca_no_credentials",
                f"nothing to show to the CA at {settings.url}",
                hint="give a token file or a certificate directory",
            )
        self._settings = settings
        self._lifetime = lifetime
        self._poll_seconds = poll_seconds
        self._client: httpx.AsyncClient | None = None
        self._client_files: tuple[bytes, ...] = ()

    async def obtain(self, identity: SpiffeId) -> Issued:
        """Make a key here and have a request for it signed there."""
        key = new_key()
        question = CertificateQuestion(
            identity=str(identity),
            csr=request_pem(build_request(key, identity)),
            lifetime_seconds=int(self._lifetime.total_seconds()),
        )
        answer = await self._ask("POST", CERTIFICATES_PATH, question, CertificateAnswer)
        return Issued(parse_certificates(answer.chain.encode(), name=self._settings.url), key)

    async def trust(self) -> Trust:
        """Ask for roots and revocation lists."""
        answer = await self._ask("GET", TRUST_PATH, None, TrustAnswer)
        name = self._settings.url
        return Trust(
            parse_certificates(answer.roots.encode(), name=name), parse_crls(answer.crls.encode(), name=name)
        )

    async def watch(self, changed: Callable[[Change], None]) -> None:
        """Have the trust asked for every ``poll_seconds``."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            changed(Change.TRUST)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def _ask(
        self, method: str, path: str, question: BaseModel | None, expected: type[_Answer]
    ) -> _Answer:
        client = await self._connected()
        headers = {"content-type": "application/json"}
        if self._settings.token is not None:
            headers["authorization"] = f"Bearer {_token(self._settings.token)}"
        content = question.model_dump_json().encode() if question is not None else None
        try:
            async with client.stream(method, path, content=content, headers=headers) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise IssuerError(
                            "ca_answer_too_large", f"the CA answered more than {MAX_ANSWER_BYTES} bytes"
                        )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        try:
            if response.status_code == httpx.codes.OK:
                return expected.model_validate_json(bytes(body))
            refusal = Refusal.model_validate_json(bytes(body))
        except ValidationError:
            raise IssuerError(
                "ca_answer_unreadable",
                f"the CA at {self._settings.url} answered {response.status_code} and nothing readable",
                hint="is it a ztun CA server?",
            ) from None
        raise IssuerError(refusal.code, f"the CA refused: {refusal.message}", hint=refusal.hint)

    async def _connected(self) -> httpx.AsyncClient:
        """Give the client, a new one when the files that it was made of have changed."""
        settings = self._settings
        paths = [settings.roots]
        if settings.certificate is not None:
            paths += [settings.certificate / "cert-chain.pem", settings.certificate / "key.pem"]
        files = tuple(read_file(path) for path in paths)
        if self._client is None or files != self._client_files:
            fresh = self._new_client(files[0])
            await self.close()
            self._client, self._client_files = fresh, files
        return self._client

    def _new_client(self, roots: bytes) -> httpx.AsyncClient:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        parse_certificates(roots, name=str(self._settings.roots))
        try:
            context.load_verify_locations(cadata=roots.decode("ascii"))
            if self._settings.certificate is not None:
                directory = self._settings.certificate
                context.load_cert_chain(directory / "cert-chain.pem", directory / "key.pem")
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise IssuerError("ca_credentials", f"the files for the CA cannot be used: {error}") from None
        return httpx.AsyncClient(
            base_url=self._settings.url,
            verify=context,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # A proxy named in the environment would see which identities a node has.
            trust_env=False,
        )

    def _unreachable(self, error: httpx.HTTPError) -> IssuerError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return IssuerError(
                    "ca_untrusted",
                    f"the server at {self._settings.url} is not the CA: {cause.verify_message}",
                    hint=f"{self._settings.roots} must hold its root, and the URL must name the server",
                )
            if isinstance(cause, ssl.SSLError):
                return IssuerError(
                    "ca_tls",
                    f"the CA at {self._settings.url} ended the TLS session",
                    hint="it may not accept our certificate, or this is not its port",
                )
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
            # In TLS 1.3 this is also how a server that does not accept the client's certificate looks.
            return IssuerError(
                "ca_hung_up",
                f"the CA at {self._settings.url} closed the connection without an answer",
                hint="it may not accept our certificate",
            )
        why = str(error) or type(error).__name__
        return IssuerError(
            "ca_unreachable", f"the CA at {self._settings.url} does not answer: {why}", hint="is it running?"
        )


def _token(path: Path) -> str:
    text = read_file(path)[: MAX_TOKEN_BYTES + 1].strip()
    if not text or len(text) > MAX_TOKEN_BYTES or not text.isascii() or any(byte <= 32 for byte in text):
        raise IssuerError("ca_token", f"{path} does not hold a token", hint="one line of visible characters")
    return text.decode("ascii")
