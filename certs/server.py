"""The CA server: signs requests of callers that a bearer token or a certificate of the mesh vouches for.

It looks at the CA directory and the access file for each request, so a rotation or a new grant needs no restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import structlog
import uvicorn
from cryptography import x509
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from certs.access import Access, AccessFile, Caller
from certs.authority import CertificateAuthority
from certs.bundle import TrustBundle, certificates_pem, crls_pem
from certs.directory import CaDirectory
from certs.endpoint import SERVER_LIFETIME, ServerTls, verified_path
from certs.errors import CertError, RequestError
from certs.http_server import BoundedProtocol, BoundedServer
from certs.issuers.watching import watch_directory
from certs.peer import CertificateFacts, leaf_identity, read_facts
from certs.request import parse_request
from certs.spiffe import SpiffeError, SpiffeId
from certs.unreadable import UNREADABLE
from certs.wire import (
    CERTIFICATES_PATH,
    HEALTH_PATH,
    MAX_QUESTION_BYTES,
    TRUST_PATH,
    CertificateAnswer,
    CertificateQuestion,
    Refusal,
    TrustAnswer,
)

MAX_CONNECTIONS = (
    512  # a node proxy keeps one; who comes when all are taken has the place of one that asks nothing
)
REQUEST_SECONDS = 10.0  # to send a question of a few kB
ANSWER_SECONDS = 10.0  # without the caller taking a byte
DRAIN_SECONDS = 5  # for requests under way when the server stops

_log = structlog.get_logger("certs.server")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """``names`` are what clients dial, DNS names or addresses; ``access`` None allows renewals only."""

    directory: Path
    names: Sequence[str]
    access: Path | None
    now: Callable[[], datetime]


class _RefusedError(Exception):
    """A question that is answered with a status and a reason."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.refusal = Refusal(code=code, message=message, hint=hint)


class CaServer:
    """One CA directory behind HTTPS. Raises :class:`CertError` when directory or access file are unusable."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._directory = CaDirectory(settings.directory)
        self._tls = ServerTls(settings.names)
        self._access = AccessFile(settings.access) if settings.access is not None else None
        if self._access is not None:
            self._access.read()
        self._renew_tls()

    async def serve(self, listening: socket.socket) -> None:
        """Answer on a bound socket until told to stop by SIGINT or SIGTERM, or cancelled."""
        app = Starlette(
            routes=[
                Route(CERTIFICATES_PATH, self._answering(self._sign), methods=["POST"]),
                Route(TRUST_PATH, self._answering(self._trust), methods=["GET"]),
                Route(HEALTH_PATH, _healthy, methods=["GET"]),
            ],
            lifespan=self._lifespan,
        )
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            ssl_context_factory=lambda _config, _default: self._tls.context(),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        server = BoundedServer(
            config,
            connections=MAX_CONNECTIONS,
            read_seconds=REQUEST_SECONDS,
            write_seconds=ANSWER_SECONDS,
        )
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            # uvicorn, cancelled itself, would leave its connections and the lifespan behind.
            server.should_exit = True
            await serving
            raise

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._keep_renewing())
            watching = group.create_task(watch_directory(self._settings.directory, self._try_renew_tls))
            yield
            renewing.cancel()
            watching.cancel()

    async def _keep_renewing(self) -> None:
        renewed = self._settings.now()
        while True:
            await asyncio.sleep(30)  # short looks at the wall clock: the machine may have slept
            if self._settings.now() - renewed >= SERVER_LIFETIME / 2:
                self._try_renew_tls()
                renewed = self._settings.now()

    def _renew_tls(self) -> None:
        self._tls.renew(self._directory.load(), now=self._settings.now())

    def _try_renew_tls(self) -> None:
        try:
            self._renew_tls()
        except CertError as error:
            _log.warning("CA directory not usable", code=error.code, error=str(error), hint=error.hint)

    def _answering(
        self, answer: Callable[[Request], Awaitable[BaseModel]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    return JSONResponse((await answer(request)).model_dump())
            except _RefusedError as refused:
                return _refuse(refused.status, refused.refusal)
            except (RequestError, SpiffeError) as error:
                code = getattr(error, "code", "identity_invalid")
                return _refuse(400, Refusal(code=code, message=str(error), hint=getattr(error, "hint", "")))
            except CertError as error:
                _log.warning("not answered", code=error.code, error=str(error), hint=error.hint)
                return _refuse(503, Refusal(code=error.code, message=str(error), hint=error.hint))
            except TimeoutError:
                return _refuse(
                    408, Refusal(code="question_timeout", message="the question did not arrive in time")
                )
            except ClientDisconnect:
                return _refuse(400, Refusal(code="question_incomplete", message="the question broke off"))

        return endpoint

    async def _sign(self, request: Request) -> CertificateAnswer:
        load = cache(self._directory.load)
        caller = self._authenticate(request, load)
        authority = load()
        question = await _question(request)
        identity = SpiffeId.parse(question.identity)
        if not caller.may_have(identity):
            _log.warning("refused", caller=caller.name, identity=str(identity))
            raise _RefusedError(
                403,
                "identity_not_granted",
                f"{caller.name} may not have {identity}",
                "add it to the access file",
            )
        chain = authority.sign(
            parse_request(question.csr),
            identity,
            now=self._settings.now(),
            lifetime=timedelta(seconds=question.lifetime_seconds),
        )
        _log.info("issued", caller=caller.name, identity=str(identity), serial=f"{chain[0].serial_number:x}")
        return CertificateAnswer(chain=certificates_pem(chain).decode("ascii"))

    async def _trust(self, request: Request) -> TrustAnswer:
        load = cache(self._directory.load)
        self._authenticate(request, load)
        authority = load()
        roots, crls = certificates_pem(authority.roots), crls_pem(authority.crls)
        return TrustAnswer(roots=roots.decode("ascii"), crls=crls.decode("ascii"))

    def _authenticate(self, request: Request, load: Callable[[], CertificateAuthority]) -> Caller:
        """Find who calls; a token that is shown must be right even if a certificate is shown too.

        Who shows nothing costs no look at a file.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        path = request.scope["state"].get("client_path")
        if not scheme and path is None:
            raise _RefusedError(
                401, "caller_unknown", "no bearer token and no client certificate", "show one of them"
            )
        access = self._access.read() if self._access is not None else Access()
        if scheme:
            caller = access.caller_by_token(token) if scheme.lower() == "bearer" else None
            if caller is None:
                raise _RefusedError(
                    401, "token_unknown", "the bearer token is not known here", "is it up to date?"
                )
            return caller
        return access.caller_by_identity(_certified(path, load(), self._settings.now()))


class _Protocol(BoundedProtocol):
    """HTTP/1.1, which also tells the application how the certificate that the caller showed was verified."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        session = transport.get_extra_info("ssl_object")
        path = verified_path(session) if session is not None else None
        self.app_state = {**self.app_state, "client_path": path}


def _certified(path: Sequence[bytes], authority: CertificateAuthority, now: datetime) -> SpiffeId:
    """Give the identity of a client certificate whose path the TLS handshake has verified.

    The path is judged again for each request: since the handshake a certificate of it may have been revoked, its root
    retired, or its time may have come.
    """
    try:
        certificates = [x509.load_der_x509_certificate(link) for link in path]
    except UNREADABLE:
        certificates = []
    read = [read_facts(certificate) for certificate in certificates]
    facts = [one for one in read if isinstance(one, CertificateFacts)]
    identity = leaf_identity(facts[0]) if len(facts) == len(read) > 1 else None
    if not isinstance(identity, SpiffeId):
        raise _RefusedError(
            401, "caller_certificate", "the client certificate names no workload", "issue another one"
        )
    bundle = TrustBundle(1, authority.roots, authority.crls)
    # Nothing is asked of the root, as in the tunnels, except that it is trusted.
    if bundle.is_revoked(one.link for one in facts[:-1]):
        raise _RefusedError(
            401,
            "caller_revoked",
            f"the client certificate of {identity} is revoked, or one that it was signed by",
            "issue another one",
        )
    if certificates[-1] not in authority.roots:
        raise _RefusedError(
            401, "caller_root", f"the root of {identity} is not trusted any more", "issue another certificate"
        )
    if any(now >= one.not_after for one in facts):
        raise _RefusedError(
            401, "caller_expired", f"the client certificate of {identity} has expired", "issue another one"
        )
    if authority.trust_domain not in (None, identity.trust_domain):
        raise _RefusedError(401, "caller_trust_domain", f"{identity} is not of this trust domain")
    return identity


async def _question(request: Request) -> CertificateQuestion:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_QUESTION_BYTES:
            raise _RefusedError(
                413, "question_too_large", f"the question is longer than {MAX_QUESTION_BYTES} bytes"
            )
    try:
        return CertificateQuestion.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the question"
        raise _RefusedError(400, "question_invalid", f"{where}: {first['msg'].lower()}") from None


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _refuse(status: int, refusal: Refusal) -> Response:
    return JSONResponse(refusal.model_dump(), status_code=status)
