"""TLS of the tunnels, by the OpenSSL of the ``cryptography`` wheel: contexts, sessions, peer verification.

TLS 1.3 only, ALPN ``h2`` only, no SNI, a client certificate is required, no resumption. The peer is
verified inside the handshake: chain, dates, revocation, its one SPIFFE identity and whether that was
expected. A session that does not pass fails before the first byte of application data, on either side.

In TLS 1.3 the client finishes first: its handshake may succeed and its first bytes may be under way when
the server verifies the client and refuses. Those bytes are never read; the server's alert reaches the
client at a later read, where :func:`handshake_failure` gives its meaning.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

from cryptography import x509
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib

from certs.alerts import describe_failure, verification_failure
from certs.bundle import ChainLink, TrustBundle
from certs.peer import CertificateFacts, PeerExpectation, PeerIdentity, TlsRejection, judge_leaf, read_facts
from certs.workload import WorkloadCertificate

MAX_CONTEXTS = 1024  # two roles of the about 250 identities a node of 250 pods has, twice over
MAX_KNOWN_CERTIFICATES = 4096  # facts of peers' certificates, about 1 kB each
MAX_CHAIN_DEPTH = 8  # leaf, root and up to seven between; Istio's own chains have at most two
ALPN = b"h2"
CIPHER_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"  # ztunnel's two; the faster one first

Role = Literal["client", "server"]


class BundleSource(Protocol):
    """What the contexts need of a certificate store: the trust bundle that is current."""

    @property
    def bundle(self) -> TrustBundle:
        """The current bundle."""


@dataclass(slots=True)
class _Session:
    """What verification needs and finds out; hangs on the connection as its application data."""

    role: Role
    expectation: PeerExpectation
    anchor_seen: bool = False
    path: list[ChainLink] = field(default_factory=list)
    peer: PeerIdentity | None = None
    rejection: TlsRejection | None = None


class TlsContexts:
    """Contexts by certificate generation, bundle generation and role; building one costs a fifth of a millisecond.

    One context is kept per identity and role, so a renewed certificate or a changed bundle replaces the old
    one. Connections keep the context they were opened with.
    """

    def __init__(self, store: BundleSource) -> None:
        self._store = store
        self._verifier = _Verifier()
        self._contexts: OrderedDict[tuple[Role, str], tuple[tuple[int, int], SSL.Context]] = OrderedDict()

    def client(self, certificate: WorkloadCertificate) -> SSL.Context:
        """Give the context that dials as ``certificate.identity``."""
        return self._context("client", certificate)

    def server(self, certificate: WorkloadCertificate) -> SSL.Context:
        """Give the context that accepts as ``certificate.identity``."""
        return self._context("server", certificate)

    def __len__(self) -> int:
        return len(self._contexts)

    def _context(self, role: Role, certificate: WorkloadCertificate) -> SSL.Context:
        bundle = self._store.bundle
        key = (role, str(certificate.identity))
        generations = (certificate.generation, bundle.generation)
        known = self._contexts.get(key)
        if known is not None and known[0] == generations:
            self._contexts.move_to_end(key)
            return known[1]
        context = build_context(role, certificate, bundle, self._verifier)
        self._contexts[key] = (generations, context)
        if len(self._contexts) > MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        return context


def build_context(
    role: Role, certificate: WorkloadCertificate, bundle: TrustBundle, verifier: _Verifier
) -> SSL.Context:
    """Make a context; the key goes from memory to memory."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD if role == "client" else SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(CIPHER_SUITES)
    # certs.openssl keeps TLS 1.3 tickets from being sent. Where an OPENSSL_CONF of the operator's is in force instead,
    # these two make them name sessions that no cache holds: who comes back with one is verified anew.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 22 KiB less per idle connection, measured
    if role == "client":
        context.set_alpn_protos([ALPN])
    else:
        context.set_alpn_select_callback(_select_alpn)
    context.use_certificate(certificate.chain[0])
    for link in certificate.chain[1:]:
        if link.subject != link.issuer:
            context.add_extra_chain_cert(link)
    context.use_privatekey(certificate.key)
    context.check_privatekey()
    trusted = context.get_cert_store()
    if trusted is None:
        raise RuntimeError("OpenSSL made a context without a certificate store")
    # A bundle may hold an intermediate without its root, as those of other implementations may.
    trusted.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for root in bundle.roots:
        trusted.add_cert(crypto.X509.from_cryptography(root))
    context.set_app_data(bundle)
    context.set_verify_depth(MAX_CHAIN_DEPTH)
    verifier.attach(context)
    return context


def open_session(context: SSL.Context, role: Role, expectation: PeerExpectation) -> SSL.Connection:
    """Start a TLS session over memory BIOs; ``expectation`` applies to this connection only.

    Drive it with ``do_handshake``, ``bio_write`` and ``bio_read``. When one of them raises an error, ask
    :func:`handshake_failure` what it means.
    """
    connection = SSL.Connection(context, None)
    connection.set_app_data(_Session(role, expectation))
    if role == "client":
        connection.set_connect_state()
    else:
        connection.set_accept_state()
    return connection


def peer(connection: SSL.Connection) -> PeerIdentity:
    """Give the verified peer. Raises ``RuntimeError`` before the handshake has succeeded.

    The certificate is judged before the peer has proved that it holds the key; only its Finished message is
    the proof, so nothing is given out earlier.
    """
    verified = _session(connection).peer
    if verified is None or connection.get_peer_finished() is None:
        raise RuntimeError("the handshake has not succeeded")
    return verified


def rejection(connection: SSL.Connection) -> TlsRejection | None:
    """Why our verification of the peer failed; None if it did not, or if the peer showed no certificate."""
    return _session(connection).rejection


def handshake_failure(connection: SSL.Connection, error: Exception) -> TlsRejection:
    """Say why a session failed: our own reason if there is one, else what the alert or OpenSSL says."""
    return _session(connection).rejection or describe_failure(error)


def is_revoked(bundle: TrustBundle, chain: tuple[ChainLink, ...]) -> bool:
    """Whether the bundle now revokes a certificate of a tunnel that stands; ``chain`` as in PeerIdentity."""
    return bundle.is_revoked(chain)


def _session(connection: SSL.Connection) -> _Session:
    return cast(_Session, connection.get_app_data())


def _select_alpn(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    _session(connection).rejection = _no_h2(offered)
    # Raised inside OpenSSL's callback, this becomes the fatal alert no_application_protocol.
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _no_h2(offered: list[bytes]) -> TlsRejection:
    named = b", ".join(offered).decode("ascii", "backslashreplace")[:80]
    return TlsRejection(
        "tls_alpn",
        f"the peer offers {named or 'no application protocol'}, but a tunnel is HTTP/2",
        "is the other end an HBONE proxy?",
    )


# The number decides which alert the peer gets: certificate_revoked, handshake_failure or bad_certificate.
_ERROR_NUMBERS = {
    "peer_revoked": SSL.X509VerificationCodes.ERR_CERT_REVOKED,
    "tls_alpn": SSL.X509VerificationCodes.ERR_APPLICATION_VERIFICATION,
}


class _Verifier:
    """The verification callback of all contexts.

    It is registered below pyOpenSSL's ``set_verify``, which has no way to say which alert a refusal is
    worth and would send ``internal_error`` for all of them. The object takes the place of pyOpenSSL's own
    helper.
    """

    def __init__(self) -> None:
        self._facts: OrderedDict[x509.Certificate, CertificateFacts | TlsRejection] = OrderedDict()
        self._problems: list[BaseException] = []
        self._index = lib.SSL_get_ex_data_X509_STORE_CTX_idx()
        self._callback = ffi.callback(
            "int (*)(int, X509_STORE_CTX *)", self._verify, error=0, onerror=self._remember
        )

    def attach(self, context: SSL.Context) -> None:
        mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        # Connections copy these two references, which keeps the callback alive as long as any of them.
        context._verify_helper = self  # type: ignore[assignment]
        context._verify_callback = self._callback
        lib.SSL_CTX_set_verify(context._context, mode, self._callback)

    def raise_if_problem(self) -> None:
        """Called by pyOpenSSL after each failed operation: an exception cannot cross OpenSSL by itself."""
        if self._problems:
            lib.ERR_clear_error()
            raise self._problems.pop(0)

    def _remember(self, _type: object, problem: BaseException, _traceback: object) -> None:
        self._problems.append(problem)

    def _verify(self, ok: int, store_context: Any) -> int:
        ssl = lib.X509_STORE_CTX_get_ex_data(store_context, self._index)
        connection = SSL.Connection._reverse_mapping[ssl]
        session = _session(connection)
        depth = lib.X509_STORE_CTX_get_error_depth(store_context)
        if ok != 1:
            number = lib.X509_STORE_CTX_get_error(store_context)
            session.rejection = session.rejection or verification_failure(number, depth)
            return 0
        if not session.anchor_seen:
            session.anchor_seen = True
            # Nothing is asked of the certificate that is trusted by itself, except that it is no leaf.
            if depth > 0:
                return 1
        refused = self._judge(connection, session, self._current(store_context), depth)
        if refused is None:
            return 1
        session.rejection = refused
        number = _ERROR_NUMBERS.get(refused.code, SSL.X509VerificationCodes.ERR_CERT_REJECTED)
        lib.X509_STORE_CTX_set_error(store_context, number)
        return 0

    def _judge(
        self,
        connection: SSL.Connection,
        session: _Session,
        facts: CertificateFacts | TlsRejection,
        depth: int,
    ) -> TlsRejection | None:
        """Judge one certificate below the trusted one; OpenSSL comes from there down to the leaf."""
        if isinstance(facts, TlsRejection):
            return facts
        session.path.append(facts.link)
        bundle = cast(TrustBundle, connection.get_context().get_app_data())
        if bundle.is_revoked((facts.link,)):
            return verification_failure(SSL.X509VerificationCodes.ERR_CERT_REVOKED, depth)
        if depth > 0:
            return None
        protocol = connection.get_alpn_proto_negotiated()
        if protocol != ALPN:
            return _no_h2([protocol] if protocol else [])
        identity = judge_leaf(facts, session.expectation)
        if isinstance(identity, TlsRejection):
            return identity
        session.peer = PeerIdentity(identity, tuple(reversed(session.path)), facts.not_after)
        return None

    def _current(self, store_context: Any) -> CertificateFacts | TlsRejection:
        pointer = lib.X509_STORE_CTX_get_current_cert(store_context)
        lib.X509_up_ref(pointer)
        try:
            certificate = crypto.X509._from_raw_x509_ptr(pointer).to_cryptography()
        except ValueError as error:
            return TlsRejection("peer_chain", f"the peer's certificate cannot be read: {error}")
        facts = self._facts.get(certificate)
        if facts is None:
            facts = read_facts(certificate)
            self._facts[certificate] = facts
            if len(self._facts) > MAX_KNOWN_CERTIFICATES:
                self._facts.popitem(last=False)
        return facts
